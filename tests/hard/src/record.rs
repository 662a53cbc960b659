//! A map of what a method can learn of an image and of itself beyond arrays: its record, files, and the gradients of other
//! classes. Written to `log` as well, for the test to read. Not a method; nobody published it.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;
use std::path::{Path, PathBuf};

register_explainer!(Record);

struct Record;

#[derive(Params)]
struct Settings {
    /// a file with a number
    #[param(default = "")]
    file: PathBuf,
    /// a file with a number, by default one beside the plugin
    #[param(default = "scale.txt")]
    beside: PathBuf,
}

impl Explainer for Record {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new("hard-record", "Record", Family::Other, Reference::own("none")).signed()
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let Some(site) = model.cam_site.clone().filter(|s| model.site(s).is_ok_and(Site::is_map)) else {
            return Ok(Bound::not_applicable("there is no feature map"));
        };
        let others = vec![Contrast::Class(1), Contrast::Rank(0), Contrast::Rank(1), Contrast::RunnerUp];
        let fit = Some(FitNeeds::default());
        let needs = Needs { gradients: vec![site.clone()], others, fit, ..Needs::default() };
        let explain = move |context: &Context<'_>| explain(context, &site, &params);
        Ok(Bound::new(needs, explain).with_fit(count_known))
    }
}

/// How many training images have a patient and an age.
fn count_known(context: &FitContext<'_>) -> Result<Named> {
    let (mut known, mut next) = (0, context.first_batch()?);
    while let Some(batch) = next {
        known += batch.records.iter().filter(|r| r.columns.contains_key("age") && r.patient.is_some()).count();
        next = context.next_batch()?;
    }
    Ok(vec![("known".into(), Array::from_vec(&[1], vec![known as i64])?)])
}

fn explain(context: &Context<'_>, site: &str, params: &Settings) -> Result<Maps> {
    let number = |path: &Path| -> Result<f64> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|e| Error::invalid(format!("{shown}: {e}")))?;
        text.trim().parse().map_err(|_| Error::invalid(format!("{shown} holds no number")))
    };
    let factor = number(&params.file)? * number(&params.beside)?;
    let plain = context.gradient(site)?.to_tensor()?;
    let mut sum = plain.f_zeros_like()?;
    for b in 0..context.ids.len() {
        let record = context.record(b).ok_or_else(|| Error::invalid("no record"))?;
        let age = record.columns.get("age").map_or("-", String::as_str);
        let patient = record.patient.as_deref().unwrap_or("-");
        context.log(&format!("{} of {patient}, age {age}", record.name));
    }
    // The class that is explained is class 1; of the two ranks one is it.
    let of = |i: usize| context.gradient_of(i, site)?.to_tensor();
    let (class, first, second, runner_up) = (of(0)?, of(1)?, of(2)?, of(3)?);
    for found in [class.f_sub(&plain)?, first.f_sub(&plain)?.f_mul(&second.f_sub(&plain)?)?] {
        sum = sum.f_add(&found.f_abs()?)?;
    }
    if first.f_eq_tensor(&second)?.f_all()?.f_int64_value(&[])? == 1 {
        return Err(Error::invalid("both ranks have the same gradient"));
    }
    // The class that is not explained: one of each image's two ranks, and not class 1.
    if runner_up.f_eq_tensor(&plain)?.f_all()?.f_int64_value(&[])? == 1 {
        return Err(Error::invalid("the runner-up is the class that is explained"));
    }
    let other = runner_up.f_sub(&first)?.f_mul(&runner_up.f_sub(&second)?)?;
    let wrong = sum.f_add(&other.f_abs()?)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    let folder = context.plugin_folder().ok_or_else(|| Error::invalid("no plugin folder"))?;
    context.log(&format!("factor {factor}, wrong {wrong}, beside {}", folder.display()));
    let map = plain.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?.f_mul_scalar(factor)?;
    Ok(Array::from_tensor(&map)?.into())
}
