//! How this thread's processor rounds. A plugin that changes it (`fesetround`, flushing of subnormals, a library that was linked
//! with `-ffast-math`) would change what every explainer after it computes.

/// Rounding, flushing of subnormals and masks of exceptions, without the flags that any operation raises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloatMode {
    bits: u64,
    /// Of the x87 unit, which `long double` uses.
    old: u16,
}

impl FloatMode {
    /// That of this thread.
    #[cfg(target_arch = "x86_64")]
    pub fn here() -> Self {
        let (mut bits, mut old) = (0u32, 0u16);
        // SAFETY: both instructions only store a register into our variables.
        unsafe {
            std::arch::asm!("stmxcsr [{}]", in(reg) &mut bits, options(nostack, preserves_flags));
            std::arch::asm!("fnstcw [{}]", in(reg) &mut old, options(nostack, preserves_flags));
        }
        // The lowest six bits are flags.
        FloatMode { bits: u64::from(bits & !0x3f), old }
    }

    /// Sets this thread's.
    #[cfg(target_arch = "x86_64")]
    fn set(self) {
        let (bits, old) = (self.bits as u32, self.old);
        // SAFETY: the values were read by `here`, so that every bit is one that the processor has.
        unsafe {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &bits, options(nostack, preserves_flags));
            std::arch::asm!("fldcw [{}]", in(reg) &old, options(nostack, preserves_flags));
        }
    }

    /// That of this thread.
    #[cfg(target_arch = "aarch64")]
    pub fn here() -> Self {
        let bits: u64;
        // SAFETY: it only reads a register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) bits, options(nomem, nostack, preserves_flags)) };
        FloatMode { bits, old: 0 }
    }

    /// Sets this thread's.
    #[cfg(target_arch = "aarch64")]
    fn set(self) {
        // SAFETY: the value was read by `here`.
        unsafe { std::arch::asm!("msr fpcr, {}", in(reg) self.bits, options(nomem, nostack, preserves_flags)) };
    }

    /// Calls an explainer. One that changes the mode fails, and the mode is set back.
    pub fn keep<T>(explainer: &str, call: impl FnOnce() -> lightbox_sdk::Result<T>) -> lightbox_sdk::Result<T> {
        let mode = FloatMode::here();
        let answer = call();
        match mode.restore() {
            false => answer,
            true => Err(lightbox_sdk::Error::output(format!(
                "explainer {explainer} changed how the processor rounds; it was set back, and its answer is not used"
            ))),
        }
    }

    /// Whether this thread's mode is another now; then it is set back.
    pub fn restore(self) -> bool {
        let changed = FloatMode::here() != self;
        if changed {
            self.set();
        }
        changed
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn a_changed_mode_is_seen_and_set_back() {
        let mode = FloatMode::here();
        assert!(!mode.restore());
        // Flushing of subnormals to zero.
        FloatMode { bits: mode.bits | 0x8040, ..mode }.set();
        assert!(mode.restore() && FloatMode::here() == mode);
        // Another rounding of the x87 unit.
        FloatMode { old: mode.old ^ 0x0400, ..mode }.set();
        assert!(mode.restore() && !mode.restore());
    }
}
