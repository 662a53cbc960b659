//! Concept maps in the manner of TCAV: Kim et al., "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept
//! Activation Vectors (TCAV)", ICML 2018, arXiv:1711.11279.
//!
//! A concept is a direction v in a layer, learned from images that show it and images that do not: the normal of a linear
//! classifier on the layer's mean over places (section 3.1; here ridge regression, which has one solution), or the difference
//! of the two means (section 3.2). TCAV asks whether the logit grows along v; the map says where:
//! `(v A_yx) * sum_y'x' (v dS/dA_y'x')`, how much of the concept is at a place times how much the logit goes up with it.
//!
//! Images of the concept are the files of a folder, in any format that a run's data may have; without a folder they are the
//! training images of the explained class. What they are told from are the files of another folder, or training images
//! (without a folder for the concept: those of other classes).

use crate::layer::{chosen, weighted};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tch::{Kind, Tensor};
use lightbox_sdk::tools::maps::{float, mean, sum};
use std::path::{Path, PathBuf};

register_explainer!(Concept);

struct Concept;

/// Training images that are looked at.
const MOST: usize = 512;

/// The files of a folder, by name.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let shown = folder.display();
    let error = |e: std::io::Error| Error::invalid(format!("{shown}: {e} (a concept is a folder of images)"));
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            all.push(path);
        }
    }
    all.sort();
    if all.is_empty() { Err(Error::invalid(format!("{shown} holds no images"))) } else { Ok(all) }
}

/// The layer's mean over places for the images of a folder, [n, C] float64, CPU.
fn of_folder(context: &FitContext<'_>, folder: &Path, site: &Site) -> Result<Tensor> {
    let (files, model) = (files(folder)?, context.run_model()?);
    let mut rows = Vec::new();
    for (i, file) in files.iter().enumerate() {
        context.check_cancelled()?;
        context.progress(i as u64, files.len() as u64);
        let image = context.read_image(file)?.share_tensor()?.f_unsqueeze(0)?;
        let images = Array::from_tensor(&image)?;
        let response = model.run(&Request { values: vec![site.name.clone()], ..Request::forward(images) })?;
        let value = response.values.get(&site.name);
        let value = value.ok_or_else(|| Error::output(format!("no value of {}", site.name)))?;
        rows.push(pooled(&value.share_tensor()?, site)?);
    }
    Ok(Tensor::f_cat(&rows, 0)?)
}

/// [B, C] float64, CPU.
fn pooled(value: &Tensor, site: &Site) -> Result<Tensor> {
    Ok(mean(&site.to_grid(value)?.f_to_kind(Kind::Double)?, &[2, 3], false)?
        .f_to_device(lightbox_sdk::tch::Device::Cpu)?)
}

/// The unit vector from rows without the concept to rows with it.
fn direction(with: &Tensor, without: &Tensor, classifier: Classifier, ridge: f64) -> Result<Tensor> {
    let difference = mean(with, &[0], false)?.f_sub(&mean(without, &[0], false)?)?;
    let v = if classifier == Classifier::Difference {
        difference
    } else {
        // Least squares for labels of 1 and 0, each class's rows less the mean of all.
        let all = Tensor::f_cat(&[with, without], 0)?;
        let (n, c) = (all.size()[0], all.size()[1]);
        let x = all.f_sub(&mean(&all, &[0], true)?)?;
        let label = |rows: &Tensor, value: f64| rows.f_new_full([rows.size()[0], 1], value, (Kind::Double, x.device()));
        let y = Tensor::f_cat(&[label(with, 1.0)?, label(without, 0.0)?], 0)?;
        let gram = x.f_transpose(0, 1)?.f_matmul(&x)?.f_div_scalar(n as f64)?;
        let scale = gram.f_diagonal(0, 0, 1)?.f_mean(Kind::Double)?.f_mul_scalar(ridge)?;
        let gram = gram.f_add(&Tensor::f_eye(c, (Kind::Double, x.device()))?.f_mul(&scale)?)?;
        gram.f_linalg_pinv(1e-12, true)?.f_matmul(&x.f_transpose(0, 1)?.f_matmul(&y)?)?.f_flatten(0, -1)?
    };
    let length = v.f_norm()?.f_double_value(&[])?;
    if length.is_nan() || length <= 0.0 {
        return Err(Error::invalid("images with the concept and without look the same to this layer"));
    }
    Ok(v.f_div_scalar(length)?)
}

choice! {
    /// what tells the two sets apart
    enum Classifier { Ridge = "ridge", Difference = "difference" }
}

#[derive(Params)]
struct Settings {
    /// folder of images that show it; empty for the explained class's own
    #[param(default = "")]
    concept: PathBuf,
    /// folder of images that do not; empty for training images
    #[param(default = "")]
    against: PathBuf,
    /// site to read; empty for the model's default, the tensor that is pooled
    #[param(default = "")]
    layer: String,
    #[param(default = Classifier::Ridge)]
    classifier: Classifier,
    /// how much the ridge shrinks
    #[param(default = 0.01, range = (1e-9, 1e9), unit = "of the mean variance")]
    ridge: f64,
}

impl Explainer for Concept {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        let reference = Reference::new(
            "Kim et al.",
            "Interpretability Beyond Feature Attribution: Quantitative Testing with Concept Activation Vectors (TCAV)",
            "ICML",
            2018,
            "arXiv:1711.11279",
        );
        ExplainerSpec::new("concept", "Concept map (TCAV)", Family::Other, reference)
            .version(env!("CARGO_PKG_VERSION"))
            .formula("(v A_yx) * sum_y'x' (v dS/dA_y'x'), v the normal of a classifier of concept against others")
            .cost("1 F, 1 B; the fit 1 F an image")
            .notes("TCAV itself is one number a class; the map is where its direction is found.")
            .signed()
            .targets(&[TargetKind::Class])
    }

    fn bind(&self, model: &ModelSpec, params: Settings) -> Result<Bound> {
        let Some(site) = chosen(model, &params.layer).cloned() else {
            return Ok(Bound::not_applicable(format!("{} has no such layer to learn a concept in", model.name)));
        };
        let names = vec![site.name.clone()];
        let fit = Some(FitNeeds { values: names.clone(), images: MOST });
        let needs = Needs { values: names.clone(), gradients: names, fit, model: true, ..Needs::default() };
        let name = site.name.clone();
        let explain = move |context: &Context<'_>| {
            let (value, gradient) = (context.grid(&name)?, context.gradient_grid(&name)?);
            let v = context.fitted("direction")?.share_tensor()?.f_to_device(value.device())?;
            let v = v.f_unsqueeze(0)?.f_expand([value.size()[0], value.size()[1]], false)?;
            let along = weighted(&value, &v)?;
            let slope = sum(&weighted(&gradient, &v)?, &[1, 2], true)?;
            Ok(Array::from_tensor(&float(&along.f_mul(&slope)?)?)?.into())
        };
        Ok(Bound::new(needs, explain).with_fit(move |context| fit_concept(context, &site, &params)))
    }
}

/// The direction of the concept, from folders or from the training set.
fn fit_concept(context: &FitContext<'_>, site: &Site, params: &Settings) -> Result<Named> {
    let (concept, against) = (&params.concept, &params.against);
    let is_empty = |path: &Path| path.as_os_str().is_empty();
    let (mut holds, mut lacks) = (Vec::new(), Vec::new());
    if is_empty(concept) || is_empty(against) {
        let target = match (is_empty(concept), context.class) {
            (true, None) => {
                let text = "parameter concept: without a folder a concept is the one class that is explained, and \
                            here that differs by image";
                return Err(Error::invalid(text));
            }
            (_, target) => target,
        };
        let mut next = context.first_batch()?;
        while let Some(batch) = next {
            context.check_cancelled()?;
            let (_, value) = batch.values.first().ok_or_else(|| Error::invalid("there is no value to learn from"))?;
            let rows = pooled(&value.share_tensor()?, site)?;
            let labels = batch.labels.share_tensor()?;
            for i in 0..rows.size()[0] {
                let row = rows.f_narrow(0, i, 1)?;
                let own = target.map(|t| labels.f_double_value(&[i, t as i64])).transpose()? == Some(1.0);
                match is_empty(concept) {
                    true if own => holds.push(row),
                    // A concept with a folder is told from any image.
                    _ => lacks.push(row),
                }
            }
            next = context.next_batch()?;
        }
    }
    let join = |rows: &[Tensor], what: &str| match rows.is_empty() {
        true => Err(Error::invalid(format!("the training set has no image {what}"))),
        false => Ok(Tensor::f_cat(rows, 0)?),
    };
    let with = if is_empty(concept) { join(&holds, "of the class")? } else { of_folder(context, concept, site)? };
    let without = match is_empty(against) {
        true => join(&lacks, "to tell the concept from")?,
        false => of_folder(context, against, site)?,
    };
    let v = direction(&with, &without, params.classifier, params.ridge)?;
    let counts = vec![with.size()[0], without.size()[0]];
    Ok(vec![("direction".into(), Array::from_tensor(&float(&v)?)?), ("images".into(), Array::from_vec(&[2], counts)?)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::tch::Device;

    #[test]
    fn a_direction_tells_the_sets_apart() {
        let noise = |n: i64, salt: f64| {
            ((Tensor::arange(n * 3, (Kind::Double, Device::Cpu)) + salt) * 7.3).sin().reshape([n, 3])
        };
        // Along the second of three channels, and a little along the third.
        let shift = Tensor::from_slice(&[0.0, 2.0, 0.2]);
        let (with, without) = (noise(40, 0.3) + &shift, noise(60, 500.0));
        for classifier in [Classifier::Ridge, Classifier::Difference] {
            let v = direction(&with, &without, classifier, 0.01).unwrap();
            assert!((v.norm().double_value(&[]) - 1.0).abs() < 1e-9);
            // Both sets lie on their own side.
            let side = |t: &Tensor| t.matmul(&v.unsqueeze(1)).mean(Kind::Double).double_value(&[]);
            assert!(side(&with) > side(&without) + 1.0, "{classifier:?}");
        }
        // With ever more ridge the classifier's normal becomes the difference of the means.
        let shrunk = direction(&with, &without, Classifier::Ridge, 1e6).unwrap();
        let difference = direction(&with, &without, Classifier::Difference, 0.01).unwrap();
        let gap = with.mean_dim([0i64].as_slice(), false, Kind::Double)
            - without.mean_dim([0i64].as_slice(), false, Kind::Double);
        assert!((&shrunk - &difference).abs().max().double_value(&[]) < 1e-4);
        assert!((difference * gap.norm() - gap).abs().max().double_value(&[]) < 1e-9);
        assert!(direction(&with, &with, Classifier::Difference, 0.01).is_err());
    }

    #[test]
    fn the_map_is_the_concept_at_a_place_times_the_logits_slope() {
        let site = Site::feature("layer", 2, [1, 2]);
        let model = ModelSpec {
            sites: vec![site],
            cam_site: Some("layer".into()),
            ..ModelSpec::new("m", InputSpec::imagenet(4), 2)
        };
        let array = |v: [f32; 4]| Array::from_vec(&[1, 2, 1, 2], v.to_vec()).unwrap();
        let maps = ContextBuilder::new(model, Array::from_vec(&[1, 3, 4, 4], vec![0f32; 48]).unwrap())
            .value("layer", array([1.0, 2.0, 3.0, 5.0]))
            .gradient("layer", array([0.5, 0.25, -1.0, 2.0]))
            .fitted("direction", Array::from_vec(&[2], vec![0.6f32, 0.8]).unwrap())
            .explain(&Concept)
            .unwrap();
        // The slope is 0.6 * 0.75 + 0.8 * 1 = 1.25.
        let found = maps.array.to_vec::<f32>().unwrap();
        assert!((found[0] - 3.0 * 1.25).abs() < 1e-5 && (found[1] - 5.2 * 1.25).abs() < 1e-5);
    }
}
