//! Many pictures as one: rows of equal tiles.

use super::{Colour, Pixels};

/// Pixels between two tiles.
const GAP: usize = 2;

/// Why tiles do not make a sheet.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SheetError {
    /// Nothing to show.
    #[error("a contact sheet needs at least one picture")]
    Empty,
    /// Tiles of different sizes.
    #[error("picture {column} of row {row} is {found:?} (width, height), expected {expected:?} like the first")]
    Size {
        /// Row of the tile that differs.
        row: usize,
        /// Its place in the row.
        column: usize,
        /// Its width and height.
        found: (usize, usize),
        /// Width and height of the first tile.
        expected: (usize, usize),
    },
}

/// Lays `rows` of tiles of one size out on white, each row in order from the left; rows may differ in length.
/// The sheet is grey when all tiles are.
///
/// # Errors
/// When there is no tile, or one has another size than the first.
pub fn contact_sheet(rows: &[Vec<Pixels>]) -> Result<Pixels, SheetError> {
    let tiles = || rows.iter().flatten();
    let first = tiles().next().ok_or(SheetError::Empty)?;
    let expected = (first.width(), first.height());
    let colour = if tiles().all(|tile| tile.colour() == Colour::Grey) {
        Colour::Grey
    } else {
        Colour::Rgb
    };
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let side = |count: usize, tile: usize| count * (tile + GAP) + GAP;
    let mut sheet = Pixels::filled(
        side(columns, expected.0),
        side(rows.len(), expected.1),
        colour,
        [255; 3],
    );
    for (row, tiles) in rows.iter().enumerate() {
        for (column, tile) in tiles.iter().enumerate() {
            let found = (tile.width(), tile.height());
            if found != expected {
                return Err(SheetError::Size {
                    row,
                    column,
                    found,
                    expected,
                });
            }
            let (left, top) = (column * (expected.0 + GAP) + GAP, row * (expected.1 + GAP) + GAP);
            sheet.paste(&tile.clone().into_colour(colour), left, top);
        }
    }
    Ok(sheet)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn tiles_land_in_their_places() {
        let tile = |value| Pixels::filled(1, 1, Colour::Grey, [value; 3]);
        let sheet = contact_sheet(&[vec![tile(1), tile(2)], vec![tile(3)]]).unwrap();
        assert_eq!((sheet.width(), sheet.height(), sheet.colour()), (8, 8, Colour::Grey));
        assert_eq!(
            [sheet.row(2)[2], sheet.row(2)[5], sheet.row(5)[2], sheet.row(5)[5]],
            [1, 2, 3, 255]
        );
    }

    #[test]
    fn tiles_of_other_sizes_are_named() {
        let rows = [vec![
            Pixels::filled(1, 1, Colour::Grey, [0; 3]),
            Pixels::filled(2, 1, Colour::Grey, [0; 3]),
        ]];
        assert_eq!(
            contact_sheet(&rows),
            Err(SheetError::Size {
                row: 0,
                column: 1,
                found: (2, 1),
                expected: (1, 1)
            })
        );
        assert_eq!(contact_sheet(&[]), Err(SheetError::Empty));
    }
}
