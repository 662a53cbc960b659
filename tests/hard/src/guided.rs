//! Guided backpropagation (Springenberg et al., "Striving for Simplicity", 2015, arXiv:1412.6806): the gradient at the image
//! where a ReLU passes back positive gradients alone; the map is the sum of magnitudes over channels.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Kind;

register_explainer!(Guided);

struct Guided;

impl Explainer for Guided {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new("Springenberg et al.", "Striving for Simplicity", "", 2015, "arXiv:1412.6806");
        ExplainerSpec::new("hard-guided", "Guided backpropagation", Family::Gradient, reference)
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        // A model without the rule is not applicable; the host says so.
        let (gradients, rules) = (vec!["input".to_string()], vec!["relu:guided".to_string()]);
        Ok(Bound::new(Needs { gradients, rules, ..Needs::default() }, |context| {
            context.gradient("input")?.dims::<4>("the gradient at the image")?;
            let gradient = context.gradient("input")?.to_tensor()?;
            let map = gradient.f_abs()?.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Float)?;
            Ok(Array::from_tensor(&map)?.into())
        }))
    }
}
