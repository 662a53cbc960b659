//! A map of what a method can learn of an image and of itself beyond arrays: its record, files, and the gradients of other
//! classes. Written to `log` as well, for the test to read. Not a method; nobody published it.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

register_explainer!(Record);

struct Record;

impl Explainer for Record {
    fn spec(&self) -> ExplainerSpec {
        let spec = ExplainerSpec::new("hard-record", "Record", Family::Other, "none", "");
        let file = ParamSpec::path("file", "", "a file with a number");
        let beside = ParamSpec::path("beside", "scale.txt", "a file with a number, by default one beside the plugin");
        ExplainerSpec { signed: true, parameters: vec![file, beside], ..spec }
    }

    fn plan(&self, model: &ModelSpec, _: &Params) -> Result<Plan> {
        let Some(site) = model.cam_site.clone().filter(|s| model.site(s).is_ok_and(|s| s.layout == Layout::BCHW))
        else {
            return Ok(Plan::not_applicable("there is no feature map"));
        };
        let others = vec![OtherClass::Class(1), OtherClass::Rank(0), OtherClass::Rank(1)];
        Ok(Needs { gradients: vec![site], others, fit: Some(FitNeeds::default()), ..Needs::default() }.into())
    }

    fn fit(&self, context: &FitContext<'_>) -> Result<Named> {
        let (mut known, mut next) = (0, context.first_batch()?);
        while let Some(batch) = next {
            known += batch.records.iter().filter(|r| r.columns.contains_key("age") && r.patient.is_some()).count();
            next = context.next_batch()?;
        }
        Ok(vec![("known".into(), Array::from_vec(&[1], vec![known as i64])?)])
    }

    fn explain(&self, context: &Context<'_>) -> Result<Maps> {
        let number = |name: &str| -> Result<f64> {
            let path = context.params.text(name)?;
            let text = std::fs::read_to_string(path).map_err(|e| Error::invalid(format!("{path}: {e}")))?;
            text.trim().parse().map_err(|_| Error::invalid(format!("{path} holds no number")))
        };
        let factor = number("file")? * number("beside")?;
        let site = context.model.cam_site.clone().unwrap_or_default();
        let plain = context.gradient(&site)?.to_tensor()?;
        let mut sum = plain.f_zeros_like()?;
        for b in 0..context.ids.len() {
            let record = context.record(b).ok_or_else(|| Error::invalid("no record"))?;
            let age = record.columns.get("age").map_or("-", String::as_str);
            let patient = record.patient.as_deref().unwrap_or("-");
            context.log(&format!("{} of {patient}, age {age}", record.name));
        }
        // The class that is explained is class 1; of the two ranks one is it.
        let of = |i: usize| context.gradient_of(i, &site)?.to_tensor();
        let (class, first, second) = (of(0)?, of(1)?, of(2)?);
        for found in [class.f_sub(&plain)?, first.f_sub(&plain)?.f_mul(&second.f_sub(&plain)?)?] {
            sum = sum.f_add(&found.f_abs()?)?;
        }
        if first.f_eq_tensor(&second)?.f_all()?.f_int64_value(&[])? == 1 {
            return Err(Error::invalid("both ranks have the same gradient"));
        }
        let wrong = sum.f_sum(Kind::Double)?.f_double_value(&[])?;
        let folder = context.plugin_folder().ok_or_else(|| Error::invalid("no plugin folder"))?;
        context.log(&format!("factor {factor}, wrong {wrong}, beside {}", folder.display()));
        let map = plain.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?.f_mul_scalar(factor)?;
        Ok(Array::from_tensor(&map)?.into())
    }
}
