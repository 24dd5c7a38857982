//! DeepFlow from pictures to pictures: encode, train, sample, decode, evaluate.
