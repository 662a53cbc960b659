//! Two convolutions and a head of each kind: a class map, a detector's candidates, a class of a volume. Their values are
//! random; nobody published them.

use lightbox_sdk::nn::{Base, Init, NetModel, Network, Parameters, device};
use lightbox_sdk::prelude::*;
use lightbox_sdk::tape::{self, Tape};
use lightbox_sdk::tch::{Device, Kind, Tensor};

register_model!("hard-segmenter", |o| spec(Head::ClassMap, o), |o| make(Head::ClassMap, o));
register_model!("hard-detector", |o| spec(Head::Boxes, o), |o| make(Head::Boxes, o));
register_model!("hard-volume", |o| spec(Head::Volume, o), |o| make(Head::Volume, o));

/// Channels of the feature map.
const CHANNELS: usize = 6;
/// Places of the feature map along each axis; the image has four times as many.
const GRID: usize = 4;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Head {
    /// A logit a class and place.
    ClassMap,
    /// A candidate at each place.
    Boxes,
    /// Logits of a volume's mean features.
    Volume,
}

fn spec(head: Head, options: &ModelOptions) -> Result<ModelSpec> {
    let classes = if options.classes == 0 { 3 } else { options.classes };
    let axes = if head == Head::Volume { 3 } else { 2 };
    let (size, grid) = (vec![4 * GRID; axes], vec![GRID; axes]);
    let input = InputSpec { channels: 1, size: size.clone(), mean: vec![0.5], std: vec![0.25] };
    let logits = |role: Role, axes: Vec<Axis>| Site { role, axes, ..Site::feature("logits", classes, &grid) };
    let (name, output, last) = match head {
        Head::ClassMap => {
            let output = Output::class_map("classes", classes, Activation::Softmax, &grid);
            let axes = [vec![Axis::Batch, Axis::Class], Axis::spatial(2)].concat();
            ("hard-segmenter", output, logits(Role::Logits, axes))
        }
        Head::Boxes => {
            let output = Output::boxes("boxes", classes, Activation::Sigmoid, GRID * GRID);
            ("hard-detector", output, logits(Role::Other, vec![Axis::Batch, Axis::Candidate, Axis::Value]))
        }
        Head::Volume => {
            let output = Output::classes("logits", classes, Activation::Softmax);
            ("hard-volume", output, Site::vector("logits", Role::Logits, classes))
        }
    };
    let sites = vec![Site::input(1, &size).start(), Site::feature("features", CHANNELS, &grid).start(), last];
    let cam_site = Some("features".to_string());
    Ok(ModelSpec { outputs: vec![output], sites, cam_site, ..ModelSpec::new(name, input, classes) })
}

fn make(head: Head, options: &ModelOptions) -> Result<Box<dyn Model>> {
    let spec = spec(head, options)?;
    let axes = spec.input.size.len();
    let classes = spec.classes() as i64;
    let mut params = Parameters::new(device(&options.device)?, options.seed);
    let kernel = |out: i64, into: i64| [vec![out, into], vec![3; axes]].concat();
    params.add("conv0.weight", &kernel(4, 1), Init::Normal(0.5))?;
    params.add("conv0.bias", &[4], Init::Normal(0.2))?;
    params.add("conv1.weight", &kernel(CHANNELS as i64, 4), Init::Normal(0.3))?;
    params.add("conv1.bias", &[CHANNELS as i64], Init::Normal(0.2))?;
    let numbers = if head == Head::Boxes { 4 + classes } else { classes };
    params.add("head.weight", &[numbers, CHANNELS as i64], Init::Normal(1.0))?;
    params.add("head.bias", &[numbers], Init::Normal(0.5))?;
    Ok(Box::new(NetModel::new(Net { head, base: Base { spec, params } })))
}

struct Net {
    head: Head,
    base: Base,
}

impl Net {
    /// A convolution of stride 2 and a softplus: smooth, and not linear.
    fn layer(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let weight = self.base.params.get(&format!("{name}.weight"))?;
        let bias = Some(self.base.params.get(&format!("{name}.bias"))?);
        Ok(match x.dim() {
            5 => x.f_conv3d(weight, bias, [2, 2, 2], [1, 1, 1], [1, 1, 1], 1)?,
            _ => x.f_conv2d(weight, bias, [2, 2], [1, 1], [1, 1], 1)?,
        }
        .f_softplus()?)
    }

    /// Corners of the candidates, [n, 4]: each place's own square, moved by a quarter of it at most.
    fn squares(&self, device: Device) -> Result<Tensor> {
        let corner = |i: usize| [i % GRID, i / GRID, i % GRID + 1, i / GRID + 1].map(|v| 4.0 * v as f32);
        let all: Vec<f32> = (0..GRID * GRID).flat_map(corner).collect();
        Ok(Tensor::f_from_slice(&all)?.f_reshape([-1, 4])?.f_to_device(device)?)
    }
}

impl Network for Net {
    fn base(&self) -> &Base {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base {
        &mut self.base
    }

    fn with(&self, base: Base) -> Self {
        Net { head: self.head, base }
    }

    fn forward(&self, images: Tensor, _: bool, mut tape: Option<&mut Tape<'_>>) -> Result<Tensor> {
        let tape = &mut tape;
        let x = tape::step(tape, "input", images, |x, _| Ok(x))?;
        let x = tape::step(tape, "features", x, |x, _| self.layer(&self.layer(&x, "conv0")?, "conv1"))?;
        tape::step(tape, "logits", x, |x, _| {
            let (weight, bias) = (self.base.params.get("head.weight")?, self.base.params.get("head.bias")?);
            let head = |features: &Tensor| features.f_linear(weight, Some(bias));
            if self.head == Head::Volume {
                let mean = x.f_mean_dim([2i64, 3, 4].as_slice(), false, Kind::Float)?;
                return Ok(head(&mean)?);
            }
            // A place's scores hang on all places, so that the gradient of a region or a box is zero nowhere.
            let mean = x.f_mean_dim([2i64, 3].as_slice(), true, Kind::Float)?;
            let mixed = x.f_add(&mean.f_mul(&x)?)?.f_flatten(2, -1)?.f_transpose(1, 2)?;
            let found = head(&mixed)?;
            if self.head == Head::ClassMap {
                let size = [x.size()[0], -1, GRID as i64, GRID as i64];
                return Ok(found.f_transpose(1, 2)?.f_reshape(size)?);
            }
            let (moved, logits) = (found.f_narrow(2, 0, 4)?, found.f_narrow(2, 4, found.size()[2] - 4)?);
            let corners = self.squares(x.device())?.f_add(&moved.f_tanh()?)?;
            Ok(Tensor::f_cat(&[&corners, &logits], 2)?)
        })
    }

    fn load(&mut self, named: Named) -> Result<LoadReport> {
        self.base.params.load(named, str::to_string, &["head.weight", "head.bias"])
    }
}
