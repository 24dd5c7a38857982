//! Inception Score: are single pictures clear and all together varied, as a classifier sees them?

/// Mean and spread of the score over the splits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InceptionScore {
    /// Mean over the splits; 1 is the worst, the number of classes the best.
    pub mean: f64,
    /// Standard deviation over the splits.
    pub deviation: f64,
    /// Number of splits.
    pub splits: usize,
}

/// Sums over a stream of predictions. A last split that is shorter counts as much as the others, as in ADM's evaluator.
#[derive(Clone, Debug)]
pub struct InceptionScoreAccumulator {
    split_size: usize,
    in_split: usize,
    /// Sum of `p·ln p` over the predictions of the split.
    negative_entropy: f64,
    sum: Vec<f64>,
    scores: Vec<f64>,
}

/// Probabilities of logits.
pub fn softmax<T: Copy + Into<f64>>(logits: &[T]) -> Vec<f64> {
    let largest = logits
        .iter()
        .map(|&logit| logit.into())
        .fold(f64::NEG_INFINITY, f64::max);
    let exponentials: Vec<f64> = logits.iter().map(|&logit| (logit.into() - largest).exp()).collect();
    let sum: f64 = exponentials.iter().sum();
    exponentials.into_iter().map(|value| value / sum).collect()
}

impl InceptionScoreAccumulator {
    /// Sums over no prediction of `classes` probabilities, with a score every `split_size` predictions.
    pub fn new(classes: usize, split_size: usize) -> Self {
        Self {
            split_size: split_size.max(1),
            in_split: 0,
            negative_entropy: 0.0,
            sum: vec![0.0; classes],
            scores: Vec::new(),
        }
    }

    /// Adds one prediction.
    pub fn add(&mut self, probabilities: &[f64]) {
        self.negative_entropy += probabilities.iter().map(|&p| entropy_term(p)).sum::<f64>();
        for (sum, p) in self.sum.iter_mut().zip(probabilities) {
            *sum += p;
        }
        self.in_split += 1;
        if self.in_split == self.split_size {
            self.close_split();
        }
    }

    /// exp of the mean divergence between a prediction and the mean prediction: `E[Σ p·ln p] - Σ p̄·ln p̄`.
    fn close_split(&mut self) {
        let count = self.in_split as f64;
        let marginal: f64 = self.sum.iter().map(|&sum| entropy_term(sum / count)).sum();
        self.scores.push((self.negative_entropy / count - marginal).exp());
        self.in_split = 0;
        self.negative_entropy = 0.0;
        self.sum.fill(0.0);
    }

    /// The score; `None` without any prediction.
    pub fn finish(mut self) -> Option<InceptionScore> {
        if self.in_split > 0 {
            self.close_split();
        }
        if self.scores.is_empty() {
            return None;
        }
        let splits = self.scores.len();
        let mean = self.scores.iter().sum::<f64>() / splits as f64;
        let variance = self.scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / splits as f64;
        Some(InceptionScore {
            mean,
            deviation: variance.sqrt(),
            splits,
        })
    }
}

/// `p·ln p`, which is 0 where p is.
fn entropy_term(p: f64) -> f64 {
    if p > 0.0 {
        p * p.ln()
    } else {
        0.0
    }
}
