//! Runs plugin code so that a panic becomes an error and libtorch's grad mode is as it was.
//!
//! Each library has its own copy of `std`, so a panic must be caught in the library where it began.
//! `tch::no_grad` does not restore the mode when it is unwound; `guard` does.

use crate::{Error, ErrorKind, Result};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Calls `f`; a panic in it is an [`ErrorKind::Panic`] with its message and place.
pub fn guard<T>(f: impl FnOnce() -> Result<T>) -> Result<T> {
    install_hook();
    let mode = GradMode::now();
    let outer = INSIDE.with(|i| i.replace(true));
    let result = catch_unwind(AssertUnwindSafe(f));
    INSIDE.with(|i| i.set(outer));
    mode.restore();
    result.unwrap_or_else(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|s| s.to_string())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".into());
        // A payload whose own drop panics would abort the process.
        std::mem::forget(payload);
        let place = PLACE.with(|p| p.borrow_mut().take()).map(|p| format!(" ({p})")).unwrap_or_default();
        let message = message.split("Exception raised from").next().unwrap_or_default().trim_end().to_string();
        Err(Error::new(ErrorKind::Panic, format!("panicked: {message}{place}")))
    })
}

/// Once a library: a panic inside `guard` notes its place and prints nothing; any other goes to the hook before.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if INSIDE.with(Cell::get) {
                let place = info.location().map(|l| format!("{}:{}", l.file(), l.line()));
                PLACE.with(|p| *p.borrow_mut() = place);
            } else {
                before(info);
            }
        }));
    });
}

#[cfg(feature = "tch")]
struct GradMode(std::ffi::c_int);

#[cfg(feature = "tch")]
impl GradMode {
    fn now() -> Self {
        // The only reader of the mode that the shim has is its writer.
        // SAFETY: plain calls that set and return a thread-local flag.
        unsafe {
            let mode = torch_sys::at_grad_set_enabled(1);
            torch_sys::at_grad_set_enabled(mode);
            GradMode(mode)
        }
    }

    fn restore(self) {
        // SAFETY: as above.
        unsafe { torch_sys::at_grad_set_enabled(self.0) };
    }
}

#[cfg(not(feature = "tch"))]
struct GradMode;

#[cfg(not(feature = "tch"))]
impl GradMode {
    fn now() -> Self {
        GradMode
    }

    fn restore(self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_place() {
        let error = guard::<()>(|| panic!("index {} out of range", 7)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Panic);
        assert!(error.message.starts_with("panicked: index 7 out of range ("), "{error}");
        assert!(error.message.contains("guard.rs:"), "{error}");
    }

    #[cfg(feature = "tch")]
    #[test]
    fn grad_mode_survives_a_panic_inside_no_grad() {
        let on = || tch::Tensor::ones([1], (tch::Kind::Float, tch::Device::Cpu)).set_requires_grad(true) * 2.0;
        assert!(on().requires_grad());
        let _ = guard::<()>(|| tch::no_grad(|| panic!("boom")));
        assert!(on().requires_grad());
    }
}
