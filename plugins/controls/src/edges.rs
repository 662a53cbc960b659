//! The image's own edges: the magnitude of the Sobel gradient of the grey image, borders replicated.
//! Sobel and Feldman, "A 3x3 isotropic gradient operator for image processing", 1968.
//! Adebayo et al. (NeurIPS 2018, arXiv:1810.03292) show how much a map can look right by being an edge map.

use lightbox_sdk::ndarray::{Array3, ArrayView2, Axis};
use lightbox_sdk::prelude::*;

register_explainer!(Edges);

struct Edges;

fn sobel(image: ArrayView2<'_, f32>, y: usize, x: usize) -> f32 {
    let (h, w) = image.dim();
    let at = |dy: isize, dx: isize| {
        let y = (y as isize + dy).clamp(0, h as isize - 1) as usize;
        let x = (x as isize + dx).clamp(0, w as isize - 1) as usize;
        image[[y, x]]
    };
    let gx = at(-1, 1) + 2.0 * at(0, 1) + at(1, 1) - at(-1, -1) - 2.0 * at(0, -1) - at(1, -1);
    let gy = at(1, -1) + 2.0 * at(1, 0) + at(1, 1) - at(-1, -1) - 2.0 * at(-1, 0) - at(-1, 1);
    gx.hypot(gy)
}

impl Explainer for Edges {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        crate::control(
            "edges",
            "Image edges (Sobel)",
            "Control: Sobel, Feldman 1968",
            "|Sobel gradient of the grey image|",
        )
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> Result<Bound> {
        Ok(Bound::new(Needs::default(), |context| {
            let grey = context.grey()?;
            let map = Array3::from_shape_fn(grey.dim(), |(b, y, x)| sobel(grey.index_axis(Axis(0), b), y, x));
            Ok(Array::from_ndarray(map)?.into())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::ndarray::arr2;

    #[test]
    fn a_step_has_the_kernels_weight_and_flat_parts_none() {
        let step = arr2(&[[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]);
        let row: Vec<f32> = (0..4).map(|x| sobel(step.view(), 1, x)).collect();
        assert_eq!(row, [0.0, 4.0, 4.0, 0.0]);
    }
}
