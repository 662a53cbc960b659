//! Ctrl-C and SIGTERM set a flag; whoever runs looks at it.

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::flag;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From now on, interruption is a flag; a second one ends the process at once.
///
/// # Errors
/// The system does not let handlers be set.
pub fn install() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        // In this order, the first signal finds the flag not set.
        flag::register_conditional_shutdown(signal, 130, INTERRUPTED.clone())?;
        flag::register(signal, INTERRUPTED.clone())?;
    }
    Ok(())
}

/// A child leaves Ctrl-C and SIGTERM, which reach a whole process group, to its parent, and dies with it. SIGUSR1 is the
/// parent's word that the work is cancelled.
///
/// # Errors
/// The system does not let handlers be set.
pub fn install_child() -> io::Result<()> {
    flag::register(SIGUSR1, INTERRUPTED.clone())?;
    // SAFETY: plain calls; nothing runs in a handler.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    Ok(())
}

/// Whether somebody wants the process to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
