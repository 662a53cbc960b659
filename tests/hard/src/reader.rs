//! The difference between an image as it is given and as it is read from its own file: nothing, everywhere. Not a method; nobody
//! published it.

use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use std::path::PathBuf;

register_explainer!(Reader);

struct Reader;

#[derive(Params)]
struct Settings {
    /// where the images are
    #[param(default = "")]
    folder: PathBuf,
}

impl Explainer for Reader {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new("hard-reader", "Reader", Family::Other, Reference::own("none"))
    }

    fn bind(&self, _: &ModelSpec, params: Settings) -> Result<Bound> {
        if params.folder.as_os_str().is_empty() {
            return Ok(Bound::not_applicable("no folder is named"));
        }
        Ok(Bound::new(Needs::default(), move |context| {
            let given = context.images.to_tensor()?;
            let mut maps = Vec::new();
            for b in 0..context.ids.len() {
                let record = context.record(b).ok_or_else(|| Error::invalid("no record"))?;
                let read = context.read_image(&params.folder.join(&record.name))?.share_tensor()?;
                let apart = given.f_get(b as i64)?.f_sub(&read)?.f_abs()?;
                maps.push(apart.f_sum_dim_intlist([0i64].as_slice(), false, Kind::Float)?);
            }
            Ok(Array::from_tensor(&Tensor::f_stack(&maps, 0)?)?.into())
        }))
    }
}
