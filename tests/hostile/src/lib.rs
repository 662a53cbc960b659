//! Plugins that misbehave, each in one way. The host must survive all of them and say which one it was.

use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;
use lightbox_sdk::tape::Tape;
use lightbox_sdk::tch::{self, Device, Kind, Tensor};

lightbox_sdk::export!();

/// What to do in `explain`.
type Deed = fn(&Context<'_>) -> Result<Maps>;

struct Hostile(&'static str, Deed);

impl Explainer for Hostile {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new(self.0, "Hostile", Family::Other, Reference::own("none")).signed()
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        let (name, deed) = (self.0, self.1);
        let needs = match name {
            "hostile-site" => Needs { values: vec!["blocks.99".into()], ..Needs::default() },
            "hostile-plan" => {
                // SAFETY: there is none; that is the point.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
                return Err(Error::invalid("still here"));
            }
            "hostile-pairs" => {
                Needs { gradients: vec!["input".into()], rules: vec!["relu:rescale".into()], ..Needs::default() }
            }
            "hostile-fit-crash" | "hostile-fit-hang" => Needs { fit: Some(FitNeeds::default()), ..Needs::default() },
            "hostile-not-applicable" => return Ok(Bound::not_applicable("it never is")),
            _ => Needs::default(),
        };
        Ok(Bound::new(needs, deed).with_fit(move |_| {
            if name == "hostile-fit-crash" {
                // SAFETY: there is none; that is the point.
                unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
            }
            loop {
                std::thread::sleep(std::time::Duration::from_secs(1));
            }
        }))
    }
}

fn map(context: &Context<'_>, value: f32) -> Result<Maps> {
    let [b, h, w] = context.size()?;
    Ok(Array::from_ndarray(Array3::from_elem((b, h, w), value))?.into())
}

register_explainer!(Hostile("hostile-site", |c| map(c, 0.0)));
register_explainer!(Hostile("hostile-plan", |c| map(c, 0.0)));
// Asks for a rule of pairs in the run that all share.
register_explainer!(Hostile("hostile-pairs", |c| map(c, 0.0)));
// Says what is no event wherever somebody may listen: to every pipe that the process can write to.
register_explainer!(Hostile("hostile-channel", |c| {
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        let number = entry.file_name().to_string_lossy().into_owned();
        let is_pipe = std::fs::read_link(entry.path()).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"));
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
        let flags = info.lines().find_map(|l| l.strip_prefix("flags:")).unwrap_or_default().trim().to_string();
        if is_pipe && number != "2" && flags.ends_with('1') {
            use std::io::Write;
            let pipe = std::fs::OpenOptions::new().write(true).open(entry.path());
            let _ = pipe.and_then(|mut pipe| pipe.write_all(b"this is no event\n"));
        }
    }
    map(c, 0.0)
}));
register_explainer!(Hostile("hostile-not-applicable", |c| map(c, 0.0)));
register_explainer!(Hostile("hostile-panic", |_| {
    let empty: Vec<f32> = Vec::new();
    Ok(Array::from_vec(&[1], vec![empty[std::hint::black_box(3)]])?.into())
}));
register_explainer!(Hostile("hostile-panic-in-no-grad", |_| tch::no_grad(|| panic!("in no_grad"))));
register_explainer!(Hostile("hostile-torch", |_| {
    // The panicking form of a libtorch call that fails.
    let t = Tensor::ones([2, 3], (Kind::Float, Device::Cpu)).matmul(&Tensor::ones([2, 3], (Kind::Float, Device::Cpu)));
    Ok(Array::from_tensor(&t)?.into())
}));
register_explainer!(Hostile("hostile-error", |_| Err(Error::unsupported("I would rather not"))));
register_explainer!(Hostile("hostile-nan", |c| map(c, f32::NAN)));
register_explainer!(Hostile("hostile-shape", |c| {
    let [b, ..] = c.size()?;
    Ok(Array::from_vec(&[b, 7], vec![0f32; b * 7])?.into())
}));
register_explainer!(Hostile("hostile-type", |c| {
    let [b, ..] = c.size()?;
    Ok(Array::from_vec(&[b, 2, 2], vec![0i64; b * 4])?.into())
}));
register_explainer!(Hostile("hostile-crash", |_| {
    // SAFETY: there is none; that is the point.
    unsafe { std::ptr::null_mut::<u8>().write_volatile(1) };
    Err(Error::invalid("still here"))
}));
register_explainer!(Hostile("hostile-fit-crash", |c| map(c, 0.0)));
register_explainer!(Hostile("hostile-fit-hang", |c| map(c, 0.0)));
// Nobody has cancelled.
register_explainer!(Hostile("hostile-cancelled", |c| Err(c.cancelled())));
register_explainer!(Hostile("hostile-exit", |_| std::process::exit(0)));
register_explainer!(Hostile("hostile-hang", |_| loop {
    std::thread::sleep(std::time::Duration::from_secs(1));
}));
// Busy for 14 s, in which it calls the host now and then: alive.
register_explainer!(Hostile("hostile-busy", |c| {
    for step in 0..14 {
        c.progress(step, 14);
        std::thread::sleep(std::time::Duration::from_secs(1));
        c.check_cancelled()?;
    }
    map(c, 0.5)
}));
// Goes on until the user has had enough.
register_explainer!(Hostile("hostile-patient", |c| loop {
    if c.is_cancelled() {
        return Err(c.cancelled());
    }
    std::thread::sleep(std::time::Duration::from_millis(20));
}));
// Fails while the file that the variable names exists.
register_explainer!(Hostile("hostile-moody", |c| match std::env::var("LIGHTBOX_TEST_MOOD") {
    Ok(file) if std::path::Path::new(&file).exists() => Err(Error::invalid("not today")),
    _ => map(c, 0.5),
}));
register_explainer!(Hostile("hostile-prints", |c| {
    println!("{{\"event\":\"ready\"}}");
    map(c, 0.5)
}));
register_explainer!(Hostile("hostile-threads", |c| {
    tch::set_num_threads(1);
    map(c, 0.5)
}));
register_explainer!(Hostile("hostile-random", |c| {
    let [b, ..] = c.size()?;
    Ok(Array::from_tensor(&Tensor::rand([b as i64, 4, 4], (Kind::Float, Device::Cpu)))?.into())
}));
register_explainer!(Hostile("hostile-batch", |c| {
    let [b, ..] = c.size()?;
    map(c, b as f32)
}));
register_explainer!(Hostile("hostile-writes", |c| {
    // A view lends only `&Tensor`; a clone of the handle is the deliberate way around it.
    let mut images = c.images.to_tensor()?.shallow_clone();
    let _ = images.f_add_scalar_(1.0)?;
    map(c, 0.5)
}));
register_explainer!(Hostile("hostile-drop", |c| {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let _bomb = Bomb;
    map(c, 0.5)
}));

// Lets the processor flush subnormals to zero, as a library that was linked with -ffast-math does.
register_explainer!(Hostile("hostile-rounding", |c| {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the register is read and written back with two more of its bits.
    unsafe {
        let mut mode = 0u32;
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut mode, options(nostack));
        mode |= 0x8040;
        std::arch::asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack));
    }
    map(c, 0.5)
}));

// Writes what would be an event, well-formed, wherever somebody may listen.
register_explainer!(Hostile("hostile-forge", |c| {
    for number in 3..40 {
        let line = b"{\"event\":\"note\",\"text\":\"FORGED\"}\n";
        // SAFETY: `write` only reads the line; a descriptor that is not there is an error.
        unsafe { libc::write(number, line.as_ptr().cast(), line.len()) };
    }
    map(c, 0.5)
}));

// Blocks all signals of its thread, and closes what it did not open.
register_explainer!(Hostile("hostile-signals", |c| {
    // SAFETY: the set is filled in before it is used.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
    map(c, 0.5)
}));
register_explainer!(Hostile("hostile-closes", |c| {
    for number in 0..20 {
        // SAFETY: that it is not ours to close is the point.
        let _ = unsafe { libc::close(number) };
    }
    map(c, 0.5)
}));

/// A model that misbehaves where gradients are: a sum of tanh over the image, whose gradient it hands back wrongly.
struct HostileModel(&'static str);

register_model!("hostile-gradient-shape", |_| model_spec("hostile-gradient-shape"), |_| {
    Ok(Box::new(HostileModel("hostile-gradient-shape")))
});
register_model!("hostile-gradient-part", |_| model_spec("hostile-gradient-part"), |_| {
    Ok(Box::new(HostileModel("hostile-gradient-part")))
});

// Ends the process when it runs, while the environment says so: as one whom the system ends for want of memory.
register_model!("hostile-dies", |_| model_spec("hostile-dies"), |_| Ok(Box::new(HostileModel("hostile-dies"))));

// Describes itself as it is, and ends the process when it is to have a number of classes.
register_model!(
    "hostile-spec",
    |options| if options.classes == 0 { model_spec("hostile-spec") } else { std::process::abort() },
    |_| Ok(Box::new(HostileModel("hostile-spec")))
);

fn model_spec(name: &str) -> Result<ModelSpec> {
    let reference = Reference::own("none");
    let sites = vec![Site::input(3, [16, 16]), Site::vector("logits", Role::Logits, 2)];
    Ok(ModelSpec { reference, sites, ..ModelSpec::new(name, InputSpec::imagenet(16), 2) })
}

impl Model for HostileModel {
    fn spec(&self) -> ModelSpec {
        model_spec(self.0).unwrap_or_else(|e| panic!("{e}"))
    }

    fn run(&self, request: &Request) -> Result<Response> {
        if self.0 == "hostile-dies" && std::env::var_os("HOSTILE_DIES").is_some() {
            std::process::abort();
        }
        let mut response = Tape::run(request, |tape, images| {
            let x =
                tape.site("input", images)?.f_tanh()?.f_sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Float)?;
            let x = x.f_reshape([-1, 1])?;
            tape.site("logits", Tensor::f_cat(&[&x, &x.f_neg()?], 1)?)
        })?;
        for (site, gradient) in response.grads.iter_mut().flatten().filter(|(site, _)| *site == "input") {
            let whole = gradient.share_tensor()?;
            let wrong = match self.0 {
                "hostile-gradient-shape" => whole.f_narrow(3, 0, 7)?,
                // The last quarter of the rows is left out: what is there is right.
                _ => Tensor::f_cat(&[whole.f_narrow(2, 0, 12)?, whole.f_narrow(2, 12, 4)?.f_zeros_like()?], 2)?,
            };
            *gradient = Array::from_tensor(&wrong).map_err(|e| e.context(site.clone()))?;
        }
        Ok(response)
    }

    fn parameters(&self) -> Result<Named> {
        Ok(vec![])
    }

    fn load(&mut self, _: Named) -> Result<LoadReport> {
        Ok(LoadReport::default())
    }

    fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
        Ok(Box::new(HostileModel(self.0)))
    }
}
