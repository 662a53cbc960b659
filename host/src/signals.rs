//! Ctrl-C and SIGTERM set a flag; whoever runs looks at it.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    // The second one ends the process at once.
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        // SAFETY: async-signal-safe.
        unsafe { libc::_exit(130) };
    }
}

extern "C" fn cancel(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on, interruption is a flag.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: the handler only touches an atomic and `_exit`.
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// A child leaves Ctrl-C and SIGTERM, which reach a whole process group, to its parent, and dies with it. SIGUSR1 is the
/// parent's word that the work is cancelled.
pub fn install_child() {
    // SAFETY: plain calls; the handler only touches an atomic.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::signal(libc::SIGUSR1, cancel as *const () as libc::sighandler_t);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
