//! Which classes are generated, and which of them sample `i` is.

use std::str::FromStr;

use crate::cli::UsageError;

/// `--classes`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ClassChoice {
    /// Every class of the model.
    #[default]
    All,
    /// These, in this order.
    List(Vec<usize>),
}

impl FromStr for ClassChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "all" {
            return Ok(Self::All);
        }
        let class = |part: &str| {
            part.trim()
                .parse::<usize>()
                .map_err(|_| format!("{part:?}, expected `all` or a list such as 0,3,7"))
        };
        text.split(',').map(class).collect::<Result<_, _>>().map(Self::List)
    }
}

impl ClassChoice {
    /// The classes, checked against a model of `classes` classes.
    ///
    /// # Errors
    /// For a class the model does not have.
    pub fn resolve(&self, classes: usize) -> Result<Vec<usize>, UsageError> {
        match self {
            Self::All => Ok((0..classes).collect()),
            Self::List(list) => match list.iter().find(|&&class| class >= classes) {
                Some(class) => Err(UsageError(format!(
                    "--classes: {class}, expected classes below {classes}"
                ))),
                None => Ok(list.clone()),
            },
        }
    }
}

/// The class of sample `index`: the classes take turns, so that a longer run begins with a shorter one.
#[must_use]
pub fn class_of(index: u64, classes: &[usize]) -> usize {
    classes[(index % classes.len() as u64) as usize]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_are_checked() {
        assert_eq!("all".parse(), Ok(ClassChoice::All));
        assert_eq!("3, 1".parse(), Ok(ClassChoice::List(vec![3, 1])));
        assert!("3;1".parse::<ClassChoice>().is_err());
        assert_eq!(ClassChoice::All.resolve(3).unwrap(), [0, 1, 2]);
        let error = ClassChoice::List(vec![1, 3]).resolve(3).unwrap_err();
        assert_eq!(error.to_string(), "--classes: 3, expected classes below 3");
    }

    #[test]
    fn classes_take_turns() {
        assert_eq!(
            (0..5).map(|index| class_of(index, &[7, 2])).collect::<Vec<_>>(),
            [7, 2, 7, 2, 7]
        );
    }
}
