//! Ctrl-C and SIGTERM as a flag that long work looks at between two steps.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

/// A request to stop: set by a signal (or by a test), seen by every stage at its next safe point.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The work was stopped on request after saving what was done; the process exits with 130.
#[derive(Debug, thiserror::Error)]
#[error("interrupted: the same command continues from here")]
pub struct Interrupted;

impl Interrupt {
    /// A flag that the first Ctrl-C or SIGTERM sets. A second one ends the process at once, for work that hangs.
    ///
    /// # Errors
    /// When the process already has another signal handler.
    pub fn from_signals() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flag = interrupt.clone();
        ctrlc::set_handler(move || {
            if flag.0.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            tracing::warn!("stopping at the next safe point (once more to stop at once)");
        })?;
        Ok(interrupt)
    }

    /// Asks the work to stop, as a signal would.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether stopping was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// For callbacks that say whether to go on: breaks off once stopping was asked for.
    pub fn flow(&self) -> ControlFlow<()> {
        if self.is_requested() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    /// The bare flag, for libraries that take an `AtomicBool`.
    #[must_use]
    pub fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }

    /// For loops with nothing to save: leaves with [`Interrupted`] once stopping was asked for.
    ///
    /// # Errors
    /// [`Interrupted`] after a request.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.is_requested() {
            Err(Interrupted)
        } else {
            Ok(())
        }
    }
}
