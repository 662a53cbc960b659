//! The teaching plugin: a complete explainer, without libtorch.
//!
//! It asks the model itself: cover a square of the image with grey and see how far the target's logit falls
//! (Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014, arXiv:1311.2901).
//! A square whose covering costs much was important.
//!
//! To make your own: copy this folder, change the dependency in `Cargo.toml` to where the SDK is, then
//! `cargo build`, `lightbox check target/debug/libmy_plugin.so`, and
//! `lightbox explain image.png --plugins target/debug --model ... --explainer my-explainer`.

// One import brings the traits and types that a plugin needs; ndarray comes with the SDK.
use lightbox_sdk::ndarray::{Array3, Array4, Axis, Ix4, s};
use lightbox_sdk::prelude::*;

// Makes the library a plugin. Once a crate.
lightbox_sdk::export!();
// Adds an explainer to it. Any number, in any file.
register_explainer!(Occlusion);

struct Occlusion;

// What a user may set: a name, a text, a default and a range each, checked by the host before we see them.
#[derive(Params)]
struct Settings {
    /// how fine the map is
    #[param(default = 4, range = (1, 64), unit = "squares a side")]
    grid: usize,
}

impl Explainer for Occlusion {
    // What a user may set. `()` where there is nothing.
    type Params = Settings;

    // Called when plugins are listed, so it must be quick: who am I?
    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Zeiler, Fergus",
            "Visualizing and Understanding Convolutional Networks",
            "ECCV",
            2014,
            "arXiv:1311.2901",
        );
        // The name is permanent: specs and tables refer to it.
        let name = "example-occlusion";
        ExplainerSpec::new(name, "Occlusion (teaching example)", Family::Perturbation, reference)
            .version(env!("CARGO_PKG_VERSION"))
            // What `lightbox info` and the method reference say of the map, and of what it costs: F is a forward pass.
            .formula("S(image) - S(image with the square covered)")
            .cost("1 F, then grid^2 F")
            // Covering a square may also raise the logit: negative values mean something here.
            .signed()
    }

    // Called once for a model and checked parameters: what do we need, or why do we not apply? What is handed back is called
    // with every batch; it owns all that was found out here.
    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let grid = params.grid;
        if model.input.size.iter().any(|side| grid > *side) {
            return Ok(Bound::not_applicable(format!("a grid of {grid} is finer than the model's pixels")));
        }
        // Sites of the model (`lightbox info MODEL` lists them) would go into `values` and `gradients`;
        // the host merges the needs of all explainers into one run of the model. We want runs of our own.
        let extra = Passes::forward((grid * grid) as u64);
        Ok(Bound::new(Needs { model: true, extra, ..Needs::default() }, move |context| explain(context, grid)))
    }
}

// Called once a batch: maps [B, h, w] of any resolution. A row of the batch is an image with the target that is to be explained
// of it; the scores below are the target's, whatever the model's task is.
fn explain(context: &Context<'_>, grid: usize) -> Result<Maps> {
    let [b, h, w] = context.size()?;
    // A batch may hold more variants than images: as many as the user's batch size, which says what memory there is. The
    // host sees how far we are, and can stop us between two batches.
    let after = context.scores_from(grid * grid, context.at_once(), Score::Logit, |pairs| {
        // One row a pair of image and covered square. Views of arrays' memory: `?` turns a wrong type, device or shape
        // into a clear error.
        let images = context.images.view::<f32>()?.into_dimensionality::<Ix4>()?;
        let mut covered = Array4::<f32>::zeros((pairs.len(), images.dim().1, h, w));
        for (row, &(image, square)) in pairs.iter().enumerate() {
            let (y, x) = (square / grid, square % grid);
            let mut one = covered.index_axis_mut(Axis(0), row);
            one.assign(&images.index_axis(Axis(0), image));
            // Zero is the mean colour of a normalised image.
            one.slice_mut(s![.., y * h / grid..(y + 1) * h / grid, x * w / grid..(x + 1) * w / grid]).fill(0.0);
        }
        Ok(Request::forward(Array::from_ndarray(covered)?))
    })?;
    // The host has already run the model on the images.
    let before = context.scores_now(Score::Logit)?;
    let map = Array3::from_shape_fn((b, grid, grid), |(i, y, x)| (before[i] - after[[i, y * grid + x]]) as f32);
    // Checked by the host: shape and finite values. A failure is recorded, never drawn as zeros.
    Ok(Array::from_ndarray(map)?.into())
}

// A `Context` can be made in a test: `cargo test` needs neither host nor libtorch.
#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::ndarray::Array2;

    /// A model whose two logits are the image's mean over its upper half, and over its lower half.
    struct Halves;

    impl Model for Halves {
        fn spec(&self) -> ModelSpec {
            ModelSpec { sites: vec![Site::input(3, [8, 8])], ..ModelSpec::new("halves", InputSpec::imagenet(8), 2) }
        }

        fn run(&self, request: &Request) -> Result<Response> {
            let mut images = request.images.to_ndarray::<f32>()?;
            for patch in &request.patches {
                if let Some(scale) = &patch.scale {
                    images = images * scale.view::<f32>()?;
                }
            }
            let images = images.into_dimensionality::<lightbox_sdk::ndarray::Ix4>()?;
            let sum = |b: usize, from: usize| images.slice(s![b, .., from..from + 4, ..]).sum();
            let logits = Array2::from_shape_fn((images.dim().0, 2), |(b, class)| sum(b, class * 4));
            Ok(Response::of(Array::from_ndarray(logits)?))
        }

        fn parameters(&self) -> Result<Named> {
            Ok(vec![])
        }

        fn load(&mut self, _: Named) -> Result<LoadReport> {
            Ok(LoadReport::default())
        }

        fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
            Ok(Box::new(Halves))
        }
    }

    #[test]
    fn what_the_model_reads_is_what_counts() {
        let images = Array::from_vec(&[1, 3, 8, 8], vec![1f32; 192]).unwrap();
        let logits = Array::from_vec(&[1, 2], vec![96f32; 2]).unwrap();
        let context = ContextBuilder::new(Halves.spec(), images).logits(logits).param("grid", 2);
        let maps =
            context.classes(&[1]).runner(ModelHandle::of("halves", Box::new(Halves))).explain(&Occlusion).unwrap();
        // Class 1 is the lower half: covering one of its two squares costs half of the logit.
        assert_eq!(maps.array.to_vec::<f32>().unwrap(), [0.0, 0.0, 48.0, 48.0]);
    }
}
