//! What perturbations share: what covered pixels are replaced by, superpixels, images with some of them.

use lightbox_sdk::ndarray::{Array2, Array3};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::Tensor;
use lightbox_sdk::tools::fill::{Fill, fill};
use lightbox_sdk::tools::{masks, segment};

/// Binds a method that needs the site of the images, and no more than a model to run.
pub fn bound(
    model: &ModelSpec,
    extra: Passes,
    explain: impl Fn(&Context<'_>) -> Result<Maps> + Send + 'static,
) -> Bound {
    if model.site_of(Role::Input).is_none() {
        return Bound::not_applicable(format!("{} has no site for its images", model.name));
    }
    Bound::new(Needs { model: true, extra, ..Needs::default() }, explain)
}

choice! {
    /// what stands in covered places: 0 after normalisation (the mean colour), black, white, the image blurred, or the mean colour of the superpixel
    pub enum SegmentFill { Zero = "zero", Black = "black", White = "white", Blur = "blur", Mean = "mean" }
}

/// `image * mask + fill * (1 - mask)` for masks [rows, 1, size...].
pub fn blend(context: &Context<'_>, fill: &Tensor, pairs: Pairs<'_>, mask: &Tensor) -> Result<Tensor> {
    let index: Vec<i64> = pairs.iter().map(|(b, _)| *b as i64).collect();
    let index = Tensor::f_from_slice(&index)?.f_to_device(fill.device())?;
    let (images, fill) = (context.rows(&context.images, pairs)?, fill.f_index_select(0, &index)?);
    Ok(fill.f_add(&images.f_sub(&fill)?.f_mul(mask)?)?)
}

choice! {
    /// squares, or superpixels of the image
    pub enum Kind { Grid = "grid", Felzenszwalb = "felzenszwalb" }
}

/// Parameters of superpixels.
#[derive(Params)]
pub struct Segments {
    #[param(default = Kind::Grid)]
    segments: Kind,
    /// how fine the grid is
    #[param(default = 8, range = (1, 256), unit = "squares a side")]
    grid: usize,
    /// of felzenszwalb: larger for larger superpixels
    #[param(default = 200.0, range = (0.0, 1e6))]
    scale: f64,
    /// of felzenszwalb: the blur before it
    #[param(default = 0.8, range = (0.0, 100.0), unit = "px")]
    sigma: f64,
    /// of felzenszwalb: the least superpixel
    #[param(default = 50, range = (1, 1_000_000), unit = "px")]
    min_size: usize,
}

/// Superpixels of each image.
pub fn segments(context: &Context<'_>, params: &Segments) -> Result<Vec<Array2<u32>>> {
    let images = context.image_tensor()?;
    let [b, c, h, w]: [i64; 4] =
        images.size().try_into().map_err(|s| Error::invalid(format!("images of shape {s:?}")))?;
    let (h, w, c) = (h as usize, w as usize, c as usize);
    let mut all = Vec::new();
    for i in 0..b {
        if params.segments == Kind::Grid {
            all.push(segment::grid(h, w, params.grid, params.grid));
            continue;
        }
        let pixels = Vec::<f32>::try_from(images.f_get(i)?.f_permute([1, 2, 0])?.f_contiguous()?.f_flatten(0, -1)?)?;
        let input = &context.model.input;
        let mut image = Array3::from_shape_vec((h, w, c), pixels)?;
        for ((_, _, k), v) in image.indexed_iter_mut() {
            let number = |of: &[f64], other| of.get(k).copied().unwrap_or(other) as f32;
            *v = (*v * number(&input.std, 1.0) + number(&input.mean, 0.0)).clamp(0.0, 1.0);
        }
        all.push(segment::felzenszwalb(image.view(), params.scale, params.sigma, params.min_size));
    }
    Ok(all)
}

/// The mean colour of each superpixel of image `b`, in its place: [1, C, H, W].
pub fn means(context: &Context<'_>, b: usize, labels: &Array2<u32>) -> Result<Tensor> {
    let images = context.image_tensor()?;
    let image = images.f_get(b as i64)?.f_flatten(1, -1)?.f_to_device(lightbox_sdk::tch::Device::Cpu)?;
    let mut values = Vec::new();
    for c in 0..image.size()[0] {
        let channel = Vec::<f32>::try_from(image.f_get(c)?.f_contiguous()?)?;
        let (mut sums, mut counts) = (vec![0f64; segment::count(labels)], vec![0f64; segment::count(labels)]);
        for (label, value) in labels.iter().zip(&channel) {
            sums[*label as usize] += f64::from(*value);
            counts[*label as usize] += 1.0;
        }
        values.extend(labels.iter().map(|l| (sums[*l as usize] / counts[*l as usize]) as f32));
    }
    let (h, w) = labels.dim();
    Ok(Tensor::f_from_slice(&values)?.f_reshape([1, -1, h as i64, w as i64])?.f_to_device(images.device())?)
}

/// A value a superpixel as maps [B, H, W].
pub fn paint(labels: &[Array2<u32>], values: &[Vec<f64>]) -> Result<Maps> {
    let (h, w) = labels.first().map_or((0, 0), Array2::dim);
    let mut maps = Array3::<f32>::zeros((labels.len(), h, w));
    for ((b, y, x), v) in maps.indexed_iter_mut() {
        *v = values[b].get(labels[b][[y, x]] as usize).copied().unwrap_or(0.0) as f32;
    }
    Ok(Array::from_ndarray(maps)?.into())
}

/// Scores of images [B] in which superpixels are on or off: `choices[b]` has a row a run. Superpixels that are off show
/// `fill`, or each its own mean colour.
pub fn scores(
    context: &Context<'_>,
    labels: &[Array2<u32>],
    choices: &[Vec<Vec<bool>>],
    (kind, score): (SegmentFill, Score),
) -> Result<Vec<Vec<f64>>> {
    let fill = match kind {
        SegmentFill::Zero => fill(context, Fill::Zero)?,
        SegmentFill::Black => fill(context, Fill::Black)?,
        SegmentFill::White => fill(context, Fill::White)?,
        SegmentFill::Blur => fill(context, Fill::Blur)?,
        SegmentFill::Mean => {
            let all = labels.iter().enumerate().map(|(b, l)| means(context, b, l)).collect::<Result<Vec<_>>>()?;
            Tensor::f_cat(&all, 0)?
        }
    };
    let most = choices.iter().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return Ok(choices.iter().map(|_| vec![]).collect());
    }
    let (h, w) = labels.first().map_or((0, 0), Array2::dim);
    // Images may have different numbers of runs; each runs its own.
    let all: Vec<(usize, usize)> =
        choices.iter().enumerate().flat_map(|(b, c)| (0..c.len()).map(move |k| (b, k))).collect();
    let mut found: Vec<Vec<f64>> = choices.iter().map(|_| Vec::new()).collect();
    let model = context.run_model()?;
    for (at, pairs) in all.chunks(context.at_once()).enumerate() {
        context.check_cancelled()?;
        context.progress((at * context.at_once()) as u64, all.len() as u64);
        let mut values = Vec::with_capacity(pairs.len() * h * w);
        pairs.iter().for_each(|&(b, k)| values.extend(masks::of_segments(&labels[b], &choices[b][k])));
        let mask = Tensor::f_from_slice(&values)?.f_to_device(fill.device())?;
        let mask = mask.f_reshape([pairs.len() as i64, 1, h as i64, w as i64])?;
        let images = blend(context, &fill, pairs, &mask)?;
        let response = model.run(&Request::forward(Array::from_tensor(&images.f_contiguous()?)?))?;
        for ((b, _), score) in pairs.iter().zip(context.score_of(&response, pairs, score)?) {
            found[*b].push(score);
        }
    }
    Ok(found)
}

#[cfg(test)]
pub mod tests {
    //! A model that is small enough to follow by hand: its logit is a function of the means of four quarters of a 4 x 4 image.

    use super::*;
    use lightbox_sdk::serde_json;
    use lightbox_sdk::tape::{Tape, site};
    use lightbox_sdk::tch::Kind as Type;
    use lightbox_sdk::tools::maps::mean;

    /// Of four numbers.
    pub type Function = fn([f64; 4]) -> f64;

    pub struct Quarters(pub Function);

    impl Model for Quarters {
        fn spec(&self) -> ModelSpec {
            ModelSpec { sites: vec![Site::input(3, [4, 4])], ..ModelSpec::new("quarters", InputSpec::imagenet(4), 2) }
        }

        fn run(&self, request: &Request) -> Result<Response> {
            Tape::run(request, |tape, images| {
                let x = site(&mut Some(tape), "input", images)?;
                let q =
                    mean(&x, &[1], true)?.f_avg_pool2d([2], [2], [0], false, true, None::<i64>)?.f_flatten(1, -1)?;
                let rows: Vec<f64> = Vec::try_from(q.to_kind(Type::Double).flatten(0, -1))?;
                let logits: Vec<f32> = rows
                    .chunks(4)
                    .flat_map(|r| {
                        let value = self.0([r[0], r[1], r[2], r[3]]) as f32;
                        [value, -value]
                    })
                    .collect();
                Ok(Tensor::f_from_slice(&logits)?.f_reshape([-1, 2])?)
            })
        }

        fn parameters(&self) -> Result<Named> {
            Ok(vec![])
        }

        fn load(&mut self, _: Named) -> Result<LoadReport> {
            Ok(LoadReport::default())
        }

        fn fork_with(&self, _: Named) -> Result<Box<dyn Model>> {
            Ok(Box::new(Quarters(self.0)))
        }
    }

    /// The means of the quarters of both images.
    pub const MEANS: [[f64; 4]; 2] = [[1.0, -0.5, 0.25, 0.75], [0.5, 2.0, -1.0, 0.125]];

    pub fn images() -> Array {
        let value = |b: usize, y: usize, x: usize| MEANS[b][y / 2 * 2 + x / 2] as f32;
        let all = (0..96).map(|i| value(i / 48, i / 4 % 4, i % 4)).collect();
        Array::from_vec(&[2, 3, 4, 4], all).unwrap()
    }

    /// A method's maps of [`images`] for class 0.
    pub fn maps(
        explainer: &impl Explainer,
        function: Function,
        params: &[(&str, serde_json::Value)],
        at_once: usize,
    ) -> Array3<f32> {
        let model = Quarters(function);
        let response = model.run(&Request::forward(images())).unwrap();
        let mut builder = ContextBuilder::new(model.spec(), images())
            .logits(response.logits)
            .at_once(at_once)
            .runner(ModelHandle::of("quarters", Box::new(model)));
        for (name, value) in params {
            builder = builder.param(name, value.clone());
        }
        let map = builder.explain(explainer).unwrap().array;
        map.to_ndarray::<f32>().unwrap().into_dimensionality().unwrap()
    }

    /// Four numbers an image, each the value of a quarter, and the same for all its pixels.
    pub fn quarters(map: &Array3<f32>) -> Vec<[f64; 4]> {
        let n = map.dim().1;
        let at = |b: usize, q: usize| map[[b, q / 2 * (n - 1), q % 2 * (n - 1)]];
        for ((b, y, x), v) in map.indexed_iter() {
            let q = y * 2 / n * 2 + x * 2 / n;
            assert!((v - at(b, q)).abs() < 1e-4, "a quarter is not even");
        }
        (0..map.dim().0).map(|b| [0, 1, 2, 3].map(|q| f64::from(at(b, q)))).collect()
    }

    /// Interacts: no sum of functions of one quarter.
    pub fn product(q: [f64; 4]) -> f64 {
        q[0] * q[1] + 2.0 * q[2] - q[3] * q[0] * q[2] + 0.5
    }

    pub fn linear(q: [f64; 4]) -> f64 {
        q[0] + 2.0 * q[1] - q[2] + 0.5 * q[3]
    }

    /// Shapley's values by their definition, with 0 for what is absent.
    pub fn shapley(function: Function, q: [f64; 4]) -> [f64; 4] {
        let value = |set: usize| function([0, 1, 2, 3].map(|i| if set >> i & 1 == 1 { q[i] } else { 0.0 }));
        [0, 1, 2, 3].map(|i| {
            let others = (0..16usize).filter(|s| s >> i & 1 == 0);
            // |S|! (3 - |S|)! / 4!
            let weight = |s: usize| [6.0, 2.0, 2.0, 6.0][s.count_ones() as usize] / 24.0;
            others.map(|s| weight(s) * (value(s | 1 << i) - value(s))).sum()
        })
    }

    pub fn close(found: &[[f64; 4]], wanted: impl Fn(usize) -> [f64; 4], limit: f64) {
        for (b, found) in found.iter().enumerate() {
            for (a, w) in found.iter().zip(wanted(b)) {
                assert!((a - w).abs() < limit, "image {b}: {found:?}, by hand {:?}", wanted(b));
            }
        }
    }

    #[test]
    fn shapleys_values_of_a_linear_function_are_its_terms() {
        assert_eq!(shapley(linear, MEANS[1]), [0.5, 4.0, 1.0, 0.0625]);
        let whole: f64 = shapley(product, MEANS[0]).iter().sum();
        assert!((whole - (product(MEANS[0]) - 0.5)).abs() < 1e-12);
    }
}
