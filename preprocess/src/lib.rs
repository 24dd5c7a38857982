//! Pictures in: sources, decoding, centre crop, and the codecs from pictures to latents.
