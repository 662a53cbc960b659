//! Ctrl-C and SIGTERM set a flag; whoever runs looks at it.

use std::sync::atomic::{AtomicBool, Ordering};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    // The second one ends the process at once.
    if INTERRUPTED.swap(true, Ordering::SeqCst) {
        unsafe { libc::_exit(130) };
    }
}

/// From now on, interruption is a flag.
pub fn install() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        unsafe { libc::signal(signal, note as *const () as libc::sighandler_t) };
    }
}

/// A worker leaves Ctrl-C and SIGTERM, which reach a whole process group, to the process that started it, and dies with it.
pub fn install_worker() {
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
