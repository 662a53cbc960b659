//! NAME: say here what the network is, with its paper and where its checkpoints' names come from.

use lightbox_sdk::nn::{self, Base, Init, NetModel, Network, Parameters};
use lightbox_sdk::prelude::*;
use lightbox_sdk::rules::{self, At, conv2d, relu};
use lightbox_sdk::tape::{Tape, step};
use lightbox_sdk::tch::Tensor;

lightbox_sdk::export!();
register_model!("NAME", spec, make);

const SIZE: usize = 64;
const CHANNELS: i64 = 16;
const HEAD: [&str; 2] = ["head.weight", "head.bias"];

fn spec(options: &ModelOptions) -> Result<ModelSpec> {
    let classes = if options.classes == 0 { 2 } else { options.classes };
    let side = SIZE / 4;
    Ok(ModelSpec {
        reference: Reference::new("Authors", "Title", "venue", 2026, "arXiv:0000.00000"),
        // Every named place whose value can be read, changed or differentiated; `start`: where a run can begin.
        sites: vec![
            Site::input(3, [SIZE, SIZE]),
            Site::feature("conv1", CHANNELS as usize, [SIZE / 2, SIZE / 2]).start(),
            Site::feature("conv2", CHANNELS as usize, [side, side]).start(),
            Site::vector("logits", Role::Logits, classes),
        ],
        cam_site: Some("conv2".into()),
        rules: rules::RELU.iter().chain(&rules::LINEAR).map(|r| r.to_string()).collect(),
        trainable: true,
        ..ModelSpec::new("NAME", InputSpec::imagenet(SIZE), classes)
    })
}

fn make(options: &ModelOptions) -> Result<Box<dyn Model>> {
    let spec = spec(options)?;
    let mut params = Parameters::new(nn::device(&options.device)?, options.seed);
    for (name, inputs) in [("conv1", 3), ("conv2", CHANNELS)] {
        let deviation = (2.0 / (inputs * 9) as f64).sqrt();
        params.add(&format!("{name}.weight"), &[CHANNELS, inputs, 3, 3], Init::Normal(deviation))?;
        params.add(&format!("{name}.bias"), &[CHANNELS], Init::Constant(0.0))?;
    }
    params.add(HEAD[0], &[spec.classes() as i64, CHANNELS], Init::Normal(0.1))?;
    params.add(HEAD[1], &[spec.classes() as i64], Init::Constant(0.0))?;
    Ok(Box::new(NetModel::new(TypeName(Base { spec, params }))))
}

struct TypeName(Base);

impl TypeName {
    /// Under the request's rules, as every layer that can.
    fn conv(&self, at: &At<'_, '_>, x: &Tensor, name: &str) -> Result<Tensor> {
        let get = |leaf: &str| self.0.params.get(&format!("{name}.{leaf}"));
        conv2d(at, x, get("weight")?, Some(get("bias")?), (2, 1, 1))
    }
}

impl Network for TypeName {
    fn base(&self) -> &Base {
        &self.0
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.0
    }

    fn with(&self, base: Base) -> Self {
        TypeName(base)
    }

    fn forward(&self, images: Tensor, _train: bool, mut tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let tape = &mut tape;
        let x = step(tape, "input", images, |x, _| Ok(x))?;
        let x = step(tape, "conv1", x, |x, tape| relu(tape, &self.conv(tape, &x, "conv1")?))?;
        let x = step(tape, "conv2", x, |x, tape| relu(tape, &self.conv(tape, &x, "conv2")?))?;
        step(tape, "logits", x, |x, tape| {
            let pooled = x.f_mean_dim([2i64, 3].as_slice(), false, x.f_kind()?)?;
            self.0.linear(tape, &pooled, "head")
        })
    }

    fn load(&mut self, named: Named) -> Result<LoadReport> {
        self.0.params.load(named, str::to_string, &HEAD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_have_a_value_a_class() -> Result<()> {
        let model = make(&ModelOptions { classes: 3, ..ModelOptions::default() })?;
        let images = Array::from_vec(&[2, 3, SIZE, SIZE], vec![0.5f32; 2 * 3 * SIZE * SIZE])?;
        let response = model.run(&Request { values: vec!["conv2".into()], ..Request::forward(images) })?;
        assert_eq!(response.logits.shape(), [2, 3]);
        assert_eq!(response.values["conv2"].shape(), [2, 16, 16, 16]);
        Ok(())
    }
}
