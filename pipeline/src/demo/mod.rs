//! `deepflow demo`: the pictures a whole run ends with.

mod loss_chart;

pub use loss_chart::draw as draw_loss_chart;
