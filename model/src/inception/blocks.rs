//! Convolutions and the five kinds of mixed blocks, with torchvision's names.

use super::error::InceptionError;
use super::weights::WeightSource;
use crate::ops::conv::{
    BatchNorm, Convolution, ConvolutionError, ConvolutionShape, FeatureMap, Output, Padding, Pool, Pooling,
};

const BATCH_NORM_EPSILON: f64 = 1e-3;

/// Makes layers below a name.
pub(super) struct Builder<'a, W> {
    pub weights: &'a W,
    pub name: &'static str,
}

/// Kernel, stride and padding of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    kernel: (usize, usize),
    stride: usize,
    padding: (usize, usize),
}

pub(super) const POINT: Geometry = Geometry {
    kernel: (1, 1),
    stride: 1,
    padding: (0, 0),
};
pub(super) const THREE: Geometry = Geometry {
    kernel: (3, 3),
    stride: 1,
    padding: (0, 0),
};
pub(super) const THREE_SAME: Geometry = Geometry {
    kernel: (3, 3),
    stride: 1,
    padding: (1, 1),
};
pub(super) const THREE_HALF: Geometry = Geometry {
    kernel: (3, 3),
    stride: 2,
    padding: (0, 0),
};
const FIVE_SAME: Geometry = Geometry {
    kernel: (5, 5),
    stride: 1,
    padding: (2, 2),
};
const ROW_OF_SEVEN: Geometry = Geometry {
    kernel: (1, 7),
    stride: 1,
    padding: (0, 3),
};
const COLUMN_OF_SEVEN: Geometry = Geometry {
    kernel: (7, 1),
    stride: 1,
    padding: (3, 0),
};
const ROW_OF_THREE: Geometry = Geometry {
    kernel: (1, 3),
    stride: 1,
    padding: (0, 1),
};
const COLUMN_OF_THREE: Geometry = Geometry {
    kernel: (3, 1),
    stride: 1,
    padding: (1, 0),
};

/// Convolution, BatchNorm and ReLU, folded into one.
pub(super) struct BasicConv(Convolution);

impl BasicConv {
    pub(super) fn forward(&self, x: &FeatureMap) -> Result<FeatureMap, ConvolutionError> {
        self.0.forward(x, Output::Relu)
    }
}

impl<W: WeightSource> Builder<'_, W> {
    /// The layer `part` of this block (or the block itself, when `part` is empty).
    pub(super) fn conv(
        &self,
        part: &str,
        inputs: usize,
        outputs: usize,
        geometry: Geometry,
    ) -> Result<BasicConv, InceptionError> {
        let layer = if part.is_empty() {
            self.name.to_owned()
        } else {
            format!("{}.{part}", self.name)
        };
        let Geometry {
            kernel,
            stride,
            padding,
        } = geometry;
        let shape = ConvolutionShape {
            in_channels: inputs,
            out_channels: outputs,
            kernel,
            stride: (stride, stride),
            padding: Padding::symmetric(padding.0, padding.1),
        };
        let weight = self
            .weights
            .tensor(&format!("{layer}.conv.weight"), &[outputs, inputs, kernel.0, kernel.1])?;
        let of_norm = |name: &str| self.weights.tensor(&format!("{layer}.bn.{name}"), &[outputs]);
        let (gain, bias) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, variance) = (of_norm("running_mean")?, of_norm("running_var")?);
        let norm = BatchNorm {
            weight: Some(&gain),
            bias: &bias,
            mean: &mean,
            variance: &variance,
            epsilon: BATCH_NORM_EPSILON,
        };
        Ok(BasicConv(Convolution::with_batch_norm(shape, &weight, &norm)?))
    }

    fn chain(&self, parts: &[(&str, usize, Geometry)], inputs: usize) -> Result<Vec<BasicConv>, InceptionError> {
        let mut inputs = inputs;
        let mut layers = Vec::with_capacity(parts.len());
        for &(part, outputs, geometry) in parts {
            layers.push(self.conv(part, inputs, outputs, geometry)?);
            inputs = outputs;
        }
        Ok(layers)
    }
}

fn run(chain: &[BasicConv], x: &FeatureMap) -> Result<FeatureMap, ConvolutionError> {
    let [first, rest @ ..] = chain else {
        return Err(ConvolutionError::Empty);
    };
    rest.iter().try_fold(first.forward(x)?, |x, layer| layer.forward(&x))
}

pub(super) fn halving_max_pool(x: &FeatureMap) -> Result<FeatureMap, ConvolutionError> {
    let pool = Pool {
        pooling: Pooling::Maximum,
        kernel: (3, 3),
        stride: (2, 2),
        padding: Padding::default(),
    };
    pool.forward(x)
}

fn same_pool(pooling: Pooling, x: &FeatureMap) -> Result<FeatureMap, ConvolutionError> {
    Pool {
        pooling,
        kernel: (3, 3),
        stride: (1, 1),
        padding: Padding::symmetric(1, 1),
    }
    .forward(x)
}

/// A block of parallel branches whose results are joined along the channels.
pub(super) struct Mixed {
    /// Chains of convolutions; the last entries of a forked chain run side by side.
    branches: Vec<Branch>,
    pool: MixedPool,
}

struct Branch {
    chain: Vec<BasicConv>,
    /// Run on the chain's result and joined.
    fork: Vec<BasicConv>,
}

enum MixedPool {
    /// Pooled at the same size, then a 1×1 convolution.
    Same(Pooling, BasicConv),
    /// Halved by maximum.
    Halving,
}

/// The result of a block; sFID looks at what its first branch gave.
pub(super) struct MixedOutput {
    pub joined: FeatureMap,
    pub first_branch: FeatureMap,
}

impl Mixed {
    pub(super) fn forward(&self, x: &FeatureMap) -> Result<MixedOutput, ConvolutionError> {
        let mut results = Vec::new();
        for branch in &self.branches {
            let trunk = run(&branch.chain, x)?;
            if branch.fork.is_empty() {
                results.push(trunk);
            } else {
                for layer in &branch.fork {
                    results.push(layer.forward(&trunk)?);
                }
            }
        }
        results.push(match &self.pool {
            MixedPool::Same(pooling, layer) => layer.forward(&same_pool(*pooling, x)?)?,
            MixedPool::Halving => halving_max_pool(x)?,
        });
        let joined = FeatureMap::concatenate(&results.iter().collect::<Vec<_>>())?;
        Ok(MixedOutput {
            joined,
            first_branch: results.swap_remove(0),
        })
    }

    /// Mixed_5b, 5c and 5d: 35×35.
    pub(super) fn a<W: WeightSource>(
        at: &Builder<'_, W>,
        inputs: usize,
        pooled: usize,
    ) -> Result<Self, InceptionError> {
        let double = [
            ("branch3x3dbl_1", 64, POINT),
            ("branch3x3dbl_2", 96, THREE_SAME),
            ("branch3x3dbl_3", 96, THREE_SAME),
        ];
        Ok(Self {
            branches: vec![
                straight(at.chain(&[("branch1x1", 64, POINT)], inputs)?),
                straight(at.chain(&[("branch5x5_1", 48, POINT), ("branch5x5_2", 64, FIVE_SAME)], inputs)?),
                straight(at.chain(&double, inputs)?),
            ],
            pool: at.pooled(Pooling::AverageWithoutPadding, inputs, pooled)?,
        })
    }

    /// Mixed_6a: from 35×35 to 17×17.
    pub(super) fn b<W: WeightSource>(at: &Builder<'_, W>, inputs: usize) -> Result<Self, InceptionError> {
        let double = [
            ("branch3x3dbl_1", 64, POINT),
            ("branch3x3dbl_2", 96, THREE_SAME),
            ("branch3x3dbl_3", 96, THREE_HALF),
        ];
        Ok(Self {
            branches: vec![
                straight(at.chain(&[("branch3x3", 384, THREE_HALF)], inputs)?),
                straight(at.chain(&double, inputs)?),
            ],
            pool: MixedPool::Halving,
        })
    }

    /// Mixed_6b to 6e: 17×17, with `inner` channels between the factorised 7×7 convolutions.
    pub(super) fn c<W: WeightSource>(at: &Builder<'_, W>, inner: usize) -> Result<Self, InceptionError> {
        const WIDTH: usize = 768;
        let single = [
            ("branch7x7_1", inner, POINT),
            ("branch7x7_2", inner, ROW_OF_SEVEN),
            ("branch7x7_3", 192, COLUMN_OF_SEVEN),
        ];
        let double = [
            ("branch7x7dbl_1", inner, POINT),
            ("branch7x7dbl_2", inner, COLUMN_OF_SEVEN),
            ("branch7x7dbl_3", inner, ROW_OF_SEVEN),
            ("branch7x7dbl_4", inner, COLUMN_OF_SEVEN),
            ("branch7x7dbl_5", 192, ROW_OF_SEVEN),
        ];
        Ok(Self {
            branches: vec![
                straight(at.chain(&[("branch1x1", 192, POINT)], WIDTH)?),
                straight(at.chain(&single, WIDTH)?),
                straight(at.chain(&double, WIDTH)?),
            ],
            pool: at.pooled(Pooling::AverageWithoutPadding, WIDTH, 192)?,
        })
    }

    /// Mixed_7a: from 17×17 to 8×8.
    pub(super) fn d<W: WeightSource>(at: &Builder<'_, W>) -> Result<Self, InceptionError> {
        const WIDTH: usize = 768;
        let seven = [
            ("branch7x7x3_1", 192, POINT),
            ("branch7x7x3_2", 192, ROW_OF_SEVEN),
            ("branch7x7x3_3", 192, COLUMN_OF_SEVEN),
            ("branch7x7x3_4", 192, THREE_HALF),
        ];
        Ok(Self {
            branches: vec![
                straight(at.chain(&[("branch3x3_1", 192, POINT), ("branch3x3_2", 320, THREE_HALF)], WIDTH)?),
                straight(at.chain(&seven, WIDTH)?),
            ],
            pool: MixedPool::Halving,
        })
    }

    /// Mixed_7b and 7c: 8×8; the FID network pools by maximum in the last.
    pub(super) fn e<W: WeightSource>(
        at: &Builder<'_, W>,
        inputs: usize,
        pooling: Pooling,
    ) -> Result<Self, InceptionError> {
        let fork = |first: &str, second: &str| -> Result<Vec<BasicConv>, InceptionError> {
            Ok(vec![
                at.conv(first, 384, 384, ROW_OF_THREE)?,
                at.conv(second, 384, 384, COLUMN_OF_THREE)?,
            ])
        };
        let double = [("branch3x3dbl_1", 448, POINT), ("branch3x3dbl_2", 384, THREE_SAME)];
        Ok(Self {
            branches: vec![
                straight(at.chain(&[("branch1x1", 320, POINT)], inputs)?),
                Branch {
                    chain: at.chain(&[("branch3x3_1", 384, POINT)], inputs)?,
                    fork: fork("branch3x3_2a", "branch3x3_2b")?,
                },
                Branch {
                    chain: at.chain(&double, inputs)?,
                    fork: fork("branch3x3dbl_3a", "branch3x3dbl_3b")?,
                },
            ],
            pool: at.pooled(pooling, inputs, 192)?,
        })
    }
}

impl<W: WeightSource> Builder<'_, W> {
    fn pooled(&self, pooling: Pooling, inputs: usize, outputs: usize) -> Result<MixedPool, InceptionError> {
        Ok(MixedPool::Same(
            pooling,
            self.conv("branch_pool", inputs, outputs, POINT)?,
        ))
    }
}

fn straight(chain: Vec<BasicConv>) -> Branch {
    Branch {
        chain,
        fork: Vec::new(),
    }
}
