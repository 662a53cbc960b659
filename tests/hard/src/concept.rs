//! Concept maps in the manner of TCAV (Kim et al., "Interpretability Beyond Feature Attribution", ICML 2018,
//! arXiv:1711.11279): a direction in a layer that tells images with the target class from those without, and at each place
//! how far the layer's value goes along it, weighted by how much the target's logit does. The direction is the difference of
//! the classes' mean activations, which the paper's section 3.2 names beside the linear classifier.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};

register_explainer!(Concept);

struct Concept;

impl Explainer for Concept {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Kim et al.",
            "Interpretability Beyond Feature Attribution",
            "ICML",
            2018,
            "arXiv:1711.11279",
        );
        let spec = ExplainerSpec::new("hard-concept", "Concept map", Family::Other, reference);
        ExplainerSpec { signed: true, ..spec }
    }

    fn bind(&self, model: &ModelSpec, _: ()) -> Result<Bound> {
        let Some(site) = model.cam_site.clone().filter(|s| model.site(s).is_ok_and(Site::is_map)) else {
            return Ok(Bound::not_applicable(format!("{} has no feature map to learn a concept in", model.name)));
        };
        let values = vec![site.clone()];
        let learn = Some(FitNeeds { values: values.clone(), images: 0 });
        let needs = Needs { values: values.clone(), gradients: values, fit: learn, ..Needs::default() };
        Ok(Bound::new(needs, move |context| explain(context, &site)).with_fit(fit))
    }
}

fn fit(context: &FitContext<'_>) -> Result<Named> {
    let target = context.class.ok_or_else(|| Error::invalid("a concept needs one class that is explained"))?;
    let mut sums: [Option<(Tensor, f64)>; 2] = [None, None];
    let mut next = context.first_batch()?;
    while let Some(batch) = next {
        let (_, value) = batch.values.first().ok_or_else(|| Error::invalid("no value to learn from"))?;
        let pooled = value.to_tensor()?.f_mean_dim([2i64, 3].as_slice(), false, Kind::Double)?;
        let holds = batch.labels.to_tensor()?.f_select(1, target as i64)?.f_to_device(pooled.device())?;
        for (class, sum) in sums.iter_mut().enumerate() {
            let mine = holds.f_eq(class as f64)?.f_to_kind(Kind::Double)?.f_unsqueeze(1)?;
            let part = pooled.f_mul(&mine)?.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Double)?;
            let count = mine.f_sum(Kind::Double)?.f_double_value(&[])?;
            *sum = Some(match sum.take() {
                Some((old, n)) => (old.f_add(&part)?, n + count),
                None => (part, count),
            });
        }
        context.check_cancelled()?;
        next = context.next_batch()?;
    }
    let [Some((without, m)), Some((with, n))] = sums else { return Err(Error::invalid("no batch to learn from")) };
    if m == 0.0 || n == 0.0 {
        return Err(Error::invalid("the training set lacks images with or without the class"));
    }
    let direction = with.f_div_scalar(n)?.f_sub(&without.f_div_scalar(m)?)?;
    let direction = direction.f_div(&direction.f_norm()?.f_clamp_min(1e-12)?)?.f_to_kind(Kind::Float)?;
    Ok(vec![
        ("direction".into(), Array::from_tensor(&direction)?),
        ("images".into(), Array::from_vec(&[2], vec![m, n])?),
    ])
}

fn explain(context: &Context<'_>, site: &str) -> Result<Maps> {
    let (value, gradient) = (context.grid(site)?, context.gradient_grid(site)?);
    let direction = context.fitted("direction")?.to_tensor()?.f_to_device(value.device())?.f_reshape([1, -1, 1, 1])?;
    let along = value.f_mul(&direction)?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float)?;
    let slope = gradient.f_mul(&direction)?.f_sum_dim_intlist([1i64, 2, 3].as_slice(), true, Kind::Float)?;
    Ok(Array::from_tensor(&along.f_mul(&slope)?.f_squeeze_dim(1)?)?.into())
}
