//! The many names of one tensor: today's diffusers names, those of older versions, and CompVis' original ones.

/// What Stable Diffusion's checkpoints, which hold several networks, put before the names of the autoencoder's tensors.
pub(super) const FIRST_STAGE: &str = "first_stage_model.";

/// The diffusers name of a tensor; `None` for what belongs to another part of a checkpoint.
///
/// `levels` is the number of levels: CompVis counts the decoder's from the picture, diffusers from the latent.
pub(super) fn canonical(name: &str, levels: usize) -> Option<String> {
    let name = name.strip_prefix(FIRST_STAGE).unwrap_or(name);
    let parts: Vec<&str> = name.split('.').collect();
    let known = ["encoder", "decoder", "quant_conv", "post_quant_conv"];
    if !known.contains(&parts[0]) {
        return None;
    }
    let level = |index: &str| index.parse::<usize>().ok().filter(|&index| index < levels);
    let path = match parts[1..] {
        ["down", index, "block", block, ref rest @ ..] => {
            format!("down_blocks.{}.resnets.{block}.{}", level(index)?, leaf(rest))
        }
        ["down", index, "downsample", ref rest @ ..] => {
            format!("down_blocks.{}.downsamplers.0.{}", level(index)?, leaf(rest))
        }
        ["up", index, "block", block, ref rest @ ..] => {
            format!(
                "up_blocks.{}.resnets.{block}.{}",
                levels - 1 - level(index)?,
                leaf(rest)
            )
        }
        ["up", index, "upsample", ref rest @ ..] => {
            format!("up_blocks.{}.upsamplers.0.{}", levels - 1 - level(index)?, leaf(rest))
        }
        ["mid", "block_1", ref rest @ ..] => format!("mid_block.resnets.0.{}", leaf(rest)),
        ["mid", "block_2", ref rest @ ..] => format!("mid_block.resnets.1.{}", leaf(rest)),
        ["mid", "attn_1", ref rest @ ..] => format!("mid_block.attentions.0.{}", attention(rest)),
        ["mid_block", "attentions", index, ref rest @ ..] => {
            format!("mid_block.attentions.{index}.{}", attention(rest))
        }
        ["norm_out", ref rest @ ..] => format!("conv_norm_out.{}", rest.join(".")),
        ref rest => rest.join("."),
    };
    Some(format!("{}.{path}", parts[0]))
}

fn leaf(parts: &[&str]) -> String {
    parts.join(".").replace("nin_shortcut", "conv_shortcut")
}

fn attention(parts: &[&str]) -> String {
    let Some((&first, rest)) = parts.split_first() else {
        return String::new();
    };
    let first = match first {
        "norm" => "group_norm",
        "q" | "query" => "to_q",
        "k" | "key" => "to_k",
        "v" | "value" => "to_v",
        "proj_out" | "proj_attn" => "to_out.0",
        other => other,
    };
    [&[first], rest].concat().join(".")
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn all_three_families_of_names_lead_to_todays() {
        for (name, expected) in [
            ("quant_conv.weight", "quant_conv.weight"),
            (
                "decoder.up_blocks.0.resnets.1.norm1.bias",
                "decoder.up_blocks.0.resnets.1.norm1.bias",
            ),
            (
                "encoder.mid_block.attentions.0.query.weight",
                "encoder.mid_block.attentions.0.to_q.weight",
            ),
            (
                "encoder.mid_block.attentions.0.proj_attn.bias",
                "encoder.mid_block.attentions.0.to_out.0.bias",
            ),
            (
                "encoder.mid_block.attentions.0.to_out.0.bias",
                "encoder.mid_block.attentions.0.to_out.0.bias",
            ),
            (
                "first_stage_model.encoder.mid.attn_1.norm.bias",
                "encoder.mid_block.attentions.0.group_norm.bias",
            ),
            (
                "first_stage_model.decoder.up.3.block.0.nin_shortcut.weight",
                "decoder.up_blocks.0.resnets.0.conv_shortcut.weight",
            ),
            (
                "decoder.up.1.upsample.conv.weight",
                "decoder.up_blocks.2.upsamplers.0.conv.weight",
            ),
            (
                "encoder.down.2.downsample.conv.bias",
                "encoder.down_blocks.2.downsamplers.0.conv.bias",
            ),
            (
                "encoder.down.0.block.1.conv2.weight",
                "encoder.down_blocks.0.resnets.1.conv2.weight",
            ),
            (
                "decoder.mid.block_2.conv1.weight",
                "decoder.mid_block.resnets.1.conv1.weight",
            ),
            ("decoder.norm_out.weight", "decoder.conv_norm_out.weight"),
        ] {
            assert_eq!(canonical(name, 4).as_deref(), Some(expected));
        }
        for foreign in [
            "loss.logvar",
            "model_ema.decay",
            "model.diffusion_model.out.0.weight",
            "decoder.up.4.block.0.norm1.bias",
        ] {
            assert_eq!(canonical(foreign, 4), None);
        }
    }
}
