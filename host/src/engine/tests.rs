//! Tests of the engine: an explainer on CPU memory with a model elsewhere, tampering, names of explainers.

use super::*;
use crate::watch::terminal;
use lightbox_sdk::spec::{Family, InputSpec, LoadReport, Role, Site};
use lightbox_sdk::tape::{Tape, step};
use lightbox_sdk::{Bound, Context, Explainer, FitBatch, FitContext, Maps, Model, Objective, Patch};

/// Stands for the memory of a device that the CPU cannot read: arrays in it are known by their addresses, and are kept,
/// so that none is given twice.
#[derive(Default)]
struct Elsewhere(Mutex<Vec<Array>>);

fn address(array: &Array) -> usize {
    array.view::<f32>().unwrap().as_ptr() as usize
}

impl Elsewhere {
    fn holds(&self, array: &Array) -> bool {
        self.0.lock().unwrap().iter().any(|a| address(a) == address(array))
    }

    fn bring(&self, array: &Array) -> Array {
        let copy = own(array).unwrap();
        self.0.lock().unwrap().push(copy.clone());
        copy
    }

    /// As libtorch does where a tensor of the CPU meets one of CUDA.
    fn need(&self, what: &str, array: &Array) -> std::result::Result<(), lightbox_sdk::Error> {
        let wrong = || lightbox_sdk::Error::invalid(format!("{what}: expected all tensors to be on the same device"));
        if self.holds(array) { Ok(()) } else { Err(wrong()) }
    }
}

impl Transfer for Elsewhere {
    fn to_model(&self, array: &Array) -> std::result::Result<Array, lightbox_sdk::Error> {
        Ok(if self.holds(array) { array.clone() } else { self.bring(array) })
    }

    fn to_cpu(&self, array: &Array) -> std::result::Result<Array, lightbox_sdk::Error> {
        if self.holds(array) { own(array) } else { Ok(array.clone()) }
    }
}

/// A model that takes and gives arrays of elsewhere alone: logits are sums of `w x` over the image.
struct Strict {
    elsewhere: Arc<Elsewhere>,
    weight: Array,
}

impl Model for Strict {
    fn spec(&self) -> ModelSpec {
        let sites = vec![Site::feature("x", 1, [2, 2]).start(), Site::vector("logits", Role::Logits, 2)];
        ModelSpec { sites, ..ModelSpec::new("strict", InputSpec { channels: 1, ..InputSpec::imagenet(2) }, 2) }
    }

    fn run(&self, request: &Request) -> std::result::Result<Response, lightbox_sdk::Error> {
        let need = |what: &str, array: &Array| self.elsewhere.need(what, array);
        match &request.start {
            Some(start) => need("start", &start.value)?,
            None => need("images", &request.images)?,
        }
        for patch in &request.patches {
            patch.scale.iter().chain(&patch.shift).try_for_each(|a| need("patch", a))?;
        }
        for objective in request.objectives.iter().flatten() {
            if let Objective::Site(_, weights) = objective {
                need("objective", weights)?;
            }
        }
        let found = Tape::run(request, |tape, images| {
            let mut tape = Some(tape);
            let x = step(&mut tape, "x", images, |x, _| Ok(x))?;
            step(&mut tape, "logits", x, |x, _| {
                let sum = x.f_mul(&self.weight.share_tensor()?)?.f_sum_dim_intlist(
                    [1i64, 2, 3].as_slice(),
                    true,
                    Kind::Float,
                )?;
                let sum = sum.f_reshape([-1, 1])?;
                Ok(Tensor::f_cat(&[&sum, &sum.f_neg()?], 1)?)
            })
        })?;
        let there = |(name, a): (String, Array)| (name, self.elsewhere.bring(&a));
        Ok(Response {
            logits: self.elsewhere.bring(&found.logits),
            outputs: BTreeMap::new(),
            values: found.values.into_iter().map(there).collect(),
            grads: found.grads.into_iter().map(|set| set.into_iter().map(there).collect()).collect(),
            products: found.products.into_iter().map(|set| set.into_iter().map(there).collect()).collect(),
        })
    }

    fn parameters(&self) -> std::result::Result<Named, lightbox_sdk::Error> {
        Ok(vec![("w".into(), self.weight.clone())])
    }

    fn load(&mut self, _: Named) -> std::result::Result<LoadReport, lightbox_sdk::Error> {
        Ok(LoadReport::default())
    }

    fn fork_with(&self, edits: Named) -> std::result::Result<Box<dyn Model>, lightbox_sdk::Error> {
        let weight = edits.into_iter().next().map_or(self.weight.clone(), |(_, a)| a);
        self.elsewhere.need("edit", &weight)?;
        Ok(Box::new(Strict { elsewhere: self.elsewhere.clone(), weight }))
    }
}

/// Reads CPU memory only, and asks for all that there is.
struct Reader(Arc<Elsewhere>);

impl Reader {
    fn read(&self, what: &str, array: &Array) -> std::result::Result<f32, lightbox_sdk::Error> {
        match self.0.holds(array) {
            true => Err(lightbox_sdk::Error::invalid(format!("{what} is not in CPU memory"))),
            false => Ok(array.view::<f32>()?.sum()),
        }
    }
}

impl Explainer for Reader {
    type Params = ();

    fn spec(&self) -> ExplainerSpec {
        let spec = ExplainerSpec::new("reader", "Reader", Family::Other, lightbox_sdk::spec::Reference::own("none"));
        ExplainerSpec { cpu_only: true, ..spec }
    }

    fn bind(&self, _: &ModelSpec, _: ()) -> lightbox_sdk::Result<Bound> {
        let (site, others) = (vec!["x".to_string()], vec![Contrast::Class(1)]);
        let fit = Some(FitNeeds::default());
        let needs = Needs { values: site.clone(), gradients: site, others, model: true, fit, ..Needs::default() };
        let (one, other) = (Reader(self.0.clone()), Reader(self.0.clone()));
        Ok(Bound::new(needs, move |context| one.explain(context)).with_fit(move |context| other.fit(context)))
    }
}

impl Reader {
    fn fit(&self, context: &FitContext<'_>) -> std::result::Result<Named, lightbox_sdk::Error> {
        let batch = context.first_batch()?.ok_or_else(|| lightbox_sdk::Error::invalid("no batch"))?;
        self.read("a batch of the fit", &batch.images)?;
        let model = context.run_model()?;
        let logits = model.run(&Request::forward(batch.images))?.logits;
        Ok(vec![("sum".into(), Array::from_vec(&[1], vec![self.read("logits in the fit", &logits)?])?)])
    }

    fn explain(&self, context: &Context<'_>) -> std::result::Result<Maps, lightbox_sdk::Error> {
        let x = context.value("x")?;
        let given = [
            ("images", &context.images),
            ("logits", &context.logits),
            ("value", x),
            ("gradient", context.gradient("x")?),
            ("another class's gradient", context.gradient_of(0, "x")?),
            ("fitted", context.fitted("sum")?),
        ];
        for (what, array) in given {
            self.read(what, array)?;
        }
        let model = context.run_model()?;
        let one = |v: f32| Array::from_vec(&[1], vec![v]);
        let patch = Patch { site: "x".into(), scale: Some(one(2.0)?), shift: Some(one(0.0)?) };
        let objectives = vec![vec![Objective::Site("x".into(), Array::from_vec(&[2, 1, 2, 2], vec![3f32; 8])?)]];
        let request = Request {
            values: vec!["x".into()],
            grads: vec!["x".into()],
            objectives,
            patches: vec![patch],
            ..Request::from_site("x", own(x)?)?
        };
        let twice = model.run(&request)?;
        let weight = model.parameters()?.remove(0).1;
        self.read("a parameter", &weight)?;
        let fork = model.fork_with(&vec![("w".into(), Array::from_vec(&[1, 1, 2, 2], vec![0f32; 4])?)])?;
        let nothing = fork.run(&Request::forward(context.images.clone()))?.logits;
        let sums = [
            self.read("a value", &twice.values["x"])? - 2.0 * self.read("value", x)?,
            self.read("a gradient", &twice.grads[0]["x"])? - 24.0,
            self.read("logits of a fork", &nothing)?,
        ];
        self.read("logits", &twice.logits)?;
        Ok(Array::from_vec(&[2, 1, 1], vec![sums[0], sums[1] + sums[2]])?.into())
    }
}

/// Without a GPU: what an explainer on CPU memory hands to and gets from a model elsewhere is copied for it.
#[test]
fn an_explainer_on_cpu_memory_works_with_a_model_elsewhere() {
    let elsewhere = Arc::new(Elsewhere::default());
    let weight = elsewhere.bring(&Array::from_vec(&[1, 1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap());
    let model = || ModelHandle::of("strict", Box::new(Strict { elsewhere: elsewhere.clone(), weight: weight.clone() }));
    let images = Tensor::from_slice(&[1.0f32, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0, 1.0]).reshape([2, 1, 2, 2]);
    // The model refuses what is not brought to it.
    let refused = model().run(&Request::forward(Array::from_tensor(&images).unwrap())).unwrap_err();
    assert!(refused.to_string().contains("images: expected all tensors to be on the same device"), "{refused}");
    let mut engine = Engine::over(model(), Settings::new(Device::Cpu, 0), terminal(), Some(elsewhere.clone())).unwrap();
    let reader = Reader(elsewhere.clone());
    let (spec, choice) = (reader.spec(), ExplainerChoice::parse("reader").unwrap());
    engine.bind(&ExplainerHandle::of(reader), spec, Path::new("none"), choice).unwrap();
    let images_there = engine.at_model(&images).unwrap();
    let batch = |_: bool| -> std::result::Result<Option<FitBatch>, lightbox_sdk::Error> {
        let logits = engine
            .request(&Request::forward(images_there.clone()))
            .map_err(|e| lightbox_sdk::Error::invalid(e.message))?
            .logits;
        Ok(Some(FitBatch {
            images: engine.lend(0, &images_there)?,
            labels: Array::from_vec(&[2, 2], vec![0f32; 4])?,
            masks: Array::from_vec(&[2, 2, 2], vec![0u8; 8])?,
            known: Array::from_vec(&[2], vec![true; 2])?,
            ids: vec![0, 1],
            records: vec![],
            values: vec![],
            logits: engine.lend(0, &logits)?,
        }))
    };
    let fitted = engine.fit(0, None, 0, 0, &batch).unwrap();
    engine.set_fitted(0, fitted);
    let batch =
        engine.run(&images, &[Some(Target::Class(0)), Some(Target::Class(1))], &[0, 1], &[0], &mut |_| {}).unwrap();
    let maps = batch.maps.into_iter().next().unwrap().1.unwrap().maps;
    assert_eq!(Vec::<f32>::try_from(maps.flatten(0, -1)).unwrap(), [0.0, 0.0]);
    assert!(batch.tampered.is_none());
    assert_eq!(Vec::<f32>::try_from(engine.classify(&images).unwrap().flatten(0, -1)).unwrap(), [7.0, -7.0, 6.0, -6.0]);
}

#[test]
fn a_change_of_any_type_and_order_is_noticed() {
    let check = |a: Tensor, b: Tensor| {
        let print = |t: &Tensor| checksum_of(&Array::from_tensor(t).unwrap()).unwrap();
        assert_eq!(print(&a), print(&a.copy()));
        assert_ne!(print(&a), print(&b), "{a:?}");
    };
    let values = Tensor::from_slice(&[0.25f64, 0.5, -1.5, 3.0]);
    for kind in [Kind::Float, Kind::Double, Kind::Half, Kind::BFloat16] {
        let typed = values.to_kind(kind);
        check(typed.shallow_clone(), typed.flip([0]));
        check(typed.shallow_clone(), &typed + Tensor::from_slice(&[0.25f64, 0.0, 0.0, 0.0]).to_kind(kind));
    }
    let numbers = Tensor::from_slice(&[1i64, 2, 3]);
    check(numbers.shallow_clone(), numbers.flip([0]));
    check(numbers.to_kind(Kind::Uint8), numbers.flip([0]).to_kind(Kind::Uint8));
}

#[test]
fn explainers_are_parsed() {
    let plain = ExplainerChoice::parse("gradcam").unwrap();
    assert_eq!((plain.label(), plain.params.len()), ("gradcam", 0));
    let set = ExplainerChoice::parse("gradcam:layer=features.norm5,relu=false").unwrap();
    assert_eq!((set.name.as_str(), set.params["relu"].as_str()), ("gradcam", Some("false")));
    assert_eq!(set.label(), "gradcam:layer=features.norm5,relu=false");
    assert!(ExplainerChoice::parse("gradcam:layer").unwrap_err().message.contains("`layer` is not param=value"));
}

/// A copy that has a name is made once, and another name is another copy.
#[test]
fn forks_are_kept_by_their_names() {
    let elsewhere = Arc::new(Elsewhere::default());
    let weight = elsewhere.bring(&Array::from_vec(&[1, 1, 2, 2], vec![1.0f32, 2.0, 3.0, 4.0]).unwrap());
    let model = ModelHandle::of("strict", Box::new(Strict { elsewhere: elsewhere.clone(), weight }));
    let engine = Engine::over(model, Settings::new(Device::Cpu, 0), terminal(), Some(elsewhere.clone())).unwrap();
    let images = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 0.0]).reshape([1, 1, 2, 2]);
    let made = std::cell::Cell::new(0);
    let logit = |key: &str, value: f32| {
        let edits = || {
            made.set(made.get() + 1);
            Ok(vec![("w".to_string(), elsewhere.bring(&Array::from_vec(&[1, 1, 2, 2], vec![value; 4])?))])
        };
        engine.fork(key, edits).unwrap().classify(&images).unwrap().double_value(&[0, 0])
    };
    assert_eq!((logit("a", 5.0), logit("a", 6.0), logit("b", 6.0), made.get()), (5.0, 5.0, 6.0, 2));
    assert_eq!(engine.classify(&images).unwrap().double_value(&[0, 0]), 1.0);
}
