//! The names tensors go by: prefixes that wrappers add, and the order the authors' code registers parameters in.

/// `torch.compile` puts `_orig_mod` into a path, DistributedDataParallel puts `module` before it.
pub(super) fn without_wrappers(name: &str) -> String {
    let parts: Vec<&str> = name.split('.').filter(|&part| part != "_orig_mod").collect();
    let wrapped = parts.iter().take_while(|&&part| part == "module").count();
    parts[wrapped..].join(".")
}

/// Order of the top-level modules in the authors' network.
const MODULES: [&str; 10] = [
    "pos_embed",
    "x_embedder",
    "t_embedder",
    "y_embedder",
    "blocks",
    "projectors",
    "dt_embedder",
    "df_blocks",
    "final_layer",
    "final_acc_layer",
];

/// Order of the parts inside modules, where it is not the alphabet's.
const PARTS: [&str; 19] = [
    "proj",
    "qkv",
    "q_norm",
    "k_norm",
    "attn",
    "acc_mlp",
    "acc_norm",
    "cross_attention",
    "linear",
    "mlp",
    "fc1",
    "fc2",
    "adaLN_modulation",
    "in_proj_weight",
    "in_proj_bias",
    "multihead_attn",
    "out_proj",
    "layer_norm",
    "weight",
];

/// Sorts names as the authors' `state_dict()` lists them; the optimiser's state refers to parameters by this position.
pub(super) fn registration_order(name: &str) -> Vec<(usize, usize)> {
    let mut parts = name.split('.');
    let module = parts.next().unwrap_or_default();
    let rank = MODULES
        .iter()
        .position(|&known| known == module)
        .unwrap_or(MODULES.len());
    let inner = parts.map(|part| match part.parse() {
        Ok(index) => (0, index),
        // `attn.proj` comes after `attn.qkv` and its norms, `x_embedder.proj` is alone.
        Err(_) if part == "proj" && module == "blocks" => (1, 4),
        Err(_) => (1, PARTS.iter().position(|&known| known == part).unwrap_or(PARTS.len())),
    });
    std::iter::once((0, rank)).chain(inner).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn wrappers_are_removed_wherever_they_are() {
        for name in [
            "blocks.0.attn.qkv.weight",
            "_orig_mod.blocks.0.attn.qkv.weight",
            "module.blocks.0.attn.qkv.weight",
            "module._orig_mod.blocks.0.attn.qkv.weight",
            "_orig_mod.module.blocks.0.attn.qkv.weight",
            "blocks.0._orig_mod.attn.qkv.weight",
        ] {
            assert_eq!(without_wrappers(name), "blocks.0.attn.qkv.weight");
        }
    }

    #[test]
    fn a_block_lists_its_parameters_as_torch_does() {
        let expected = [
            "pos_embed",
            "blocks.0.attn.qkv.weight",
            "blocks.0.attn.qkv.bias",
            "blocks.0.attn.q_norm.weight",
            "blocks.0.attn.k_norm.weight",
            "blocks.0.attn.proj.weight",
            "blocks.0.mlp.fc1.weight",
            "blocks.0.adaLN_modulation.1.bias",
            "blocks.2.attn.qkv.weight",
            "blocks.10.attn.qkv.weight",
        ];
        let mut sorted = expected;
        sorted.sort_unstable();
        sorted.sort_by_cached_key(|name| registration_order(name));
        assert_eq!(sorted, expected);
    }
}
