//! Coverage-guided fuzzing of everything that reads what others wrote: `cargo xtask fuzz`. One program for all targets, so that
//! the instrumented libraries are built and linked once; `LIGHTBOX_FUZZ_TARGET` names the target. An input may be refused or read;
//! what it may not do is crash, panic, hang (10 s) or take more than 600 MB, which libFuzzer is told to watch.

#![no_main]

use lightbox::run::spec::RunSpec;
use lightbox_core::data::preparation::Preparation;
use lightbox_core::data::store::Store;
use lightbox_core::data::{self, DataSpec, chexpert, image::Intensity, nih, node21, table};
use lightbox_core::results::{self, Names};
use lightbox_core::task::{Kind, Task};
use lightbox_core::{checkpoint, maps_file::MapsFile};
use lightbox_sdk::spec::{InputSpec, LoadReport, Manifest, ModelSpec, Plan};
use lightbox_sdk::{Array, Model, ModelHandle, Named, Request, Response, wire};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tch::Device;

type Target = fn(&[u8]);

/// All targets by name; `cargo xtask fuzz` has the same list.
const TARGETS: [(&str, Target); 19] = [
    ("image", image),
    ("metaimage", metaimage),
    ("checkpoint", read_checkpoint),
    ("batch", batch),
    ("maps", maps),
    ("store", store),
    ("scores", scores),
    ("images-table", images_table),
    ("predictions", predictions),
    ("table", csv_table),
    ("annotations", annotations),
    ("spec", spec),
    ("set", set),
    ("plugin", plugin),
    ("events", events),
    ("wire", messages),
    ("frame", frame),
    ("program", program),
    ("archive", archive),
];

/// A folder in memory, for readers of files.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let base = if Path::new("/dev/shm").is_dir() { PathBuf::from("/dev/shm") } else { std::env::temp_dir() };
        let folder = base.join(format!("lightbox-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for inputs");
        folder
    })
}

/// The input as a file of this name.
fn file(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    std::fs::write(&path, bytes).expect("an input is written");
    path
}

fn read_image(path: &Path) {
    for (colour, intensity) in [(false, Intensity::Auto), (true, Intensity::Percentile)] {
        let preparation = Preparation { size: [16, 16], colour, intensity };
        if let Ok(image) = preparation.read(path) {
            let _ = preparation.levels(&image);
        }
    }
}

/// PNG, JPEG and DICOM, told apart by their content.
fn image(bytes: &[u8]) {
    let_panics_be_caught();
    read_image(&file("input.png", bytes));
}

/// MetaImage, whose header may name another file.
fn metaimage(bytes: &[u8]) {
    read_image(&file("input.mha", bytes));
}

/// PyTorch files of both forms and safetensors.
fn read_checkpoint(bytes: &[u8]) {
    let path = file("input.pth", bytes);
    let _ = checkpoint::open(&path);
    let _ = checkpoint::read_own(&path);
}

/// Batches of `lightbox explain`: .npy and .safetensors by their endings.
fn batch(bytes: &[u8]) {
    for name in ["input.npy", "input.safetensors"] {
        let _ = lightbox_core::tensors::read_batch(&file(name, bytes));
    }
}

/// The program of an exported network, in an archive with the weights of a small one.
fn program(bytes: &[u8]) {
    use std::io::Write;
    static BASE: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    let base = BASE.get_or_init(|| {
        let small = concat!(env!("CARGO_MANIFEST_DIR"), "/../oracle/golden/exported-segment.pt2");
        let mut zip =
            zip::ZipArchive::new(std::fs::File::open(small).expect("the golden is there")).expect("it is a zip");
        let mut all = Vec::new();
        for i in 0..zip.len() {
            let mut entry = zip.by_index(i).expect("it has its entries");
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).expect("they can be read");
            all.push((entry.name().to_string(), bytes));
        }
        all
    });
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, own) in base {
        zip.start_file(name, stored).expect("a new entry");
        let given = if name.ends_with("models/model.json") { bytes } else { own };
        zip.write_all(given).expect("it is written to memory");
    }
    archive(&zip.finish().expect("it is written to memory").into_inner());
}

/// A `.pt2` archive.
fn archive(bytes: &[u8]) {
    let _ = lightbox_exported::read(&file("input.pt2", bytes));
}

/// A run's file of maps.
fn maps(bytes: &[u8]) {
    if let Ok(maps) = MapsFile::open(&file("maps.safetensors", bytes)) {
        let _ = maps.rows(0, 1);
    }
}

/// Prepared images.
fn store(bytes: &[u8]) {
    let path = file("images.safetensors", bytes);
    if let Ok(store) = Store::open(&path, &[0.5; 3], &[0.2; 3], Device::Cpu, 1 << 20) {
        let _ = store.batch(&[0]);
        let _ = (store.mask(0, Some(0)), store.known(0));
    }
}

/// The libraries for Parquet, JPEG and DICOM panic on some damaged files; that is caught and refused, and no finding. What escapes is
/// one all the same.
fn let_panics_be_caught() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| {})));
}

fn scores(bytes: &[u8]) {
    let_panics_be_caught();
    let _ = results::read_scores(&file("scores.parquet", bytes), &mut Names::default(), &mut |_| {});
}

fn images_table(bytes: &[u8]) {
    let_panics_be_caught();
    let _ = results::read_images(&file("images.parquet", bytes));
}

fn predictions(bytes: &[u8]) {
    let_panics_be_caught();
    let _ = results::read_predictions(&file("predictions.parquet", bytes), &mut Names::default(), &mut |_| {});
}

/// A user's table in each task, with boxes of its own.
fn csv_table(bytes: &[u8]) {
    let csv = file("table.csv", bytes);
    for kind in [Kind::Binary, Kind::MultiClass, Kind::MultiLabel] {
        let task = Task { kind, ..Task::default() };
        let plain = table::Table { csv: csv.clone(), ..table::Table::default() };
        let _ = data::open(&DataSpec::Table(plain.clone()), &task);
        let _ = data::open(&DataSpec::Table(table::Table { boxes: Some(csv.clone()), ..plain }), &task);
    }
}

/// The published annotations: NODE21, ChestX-ray14, CheXpert.
fn annotations(bytes: &[u8]) {
    let csv = file("annotations.csv", bytes);
    let _ = node21::annotations(&csv);
    let nih =
        nih::Nih { labels: csv.clone(), images: folder().into(), boxes: Some(csv.clone()), ..nih::Nih::default() };
    let chexpert = chexpert::CheXpert {
        labels: csv.clone(),
        images: folder().into(),
        boxes: Some(csv),
        uncertain: Some(chexpert::Policy::LeaveOut),
        ..chexpert::CheXpert::default()
    };
    for kind in [Kind::Binary, Kind::MultiLabel] {
        let task = Task { kind, ..Task::default() };
        let _ = data::open(&DataSpec::Nih(nih.clone()), &task);
        let _ = data::open(&DataSpec::CheXpert(chexpert.clone()), &task);
    }
}

fn spec(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = RunSpec::parse(text, folder());
    }
}

/// `--set` on a built-in spec.
fn set(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let sets: Vec<String> = text.lines().map(str::to_string).collect();
        let _ = RunSpec::read(Path::new("demo"), &sets, &[]);
    }
}

/// A plugin's file before it is opened, and what plugins say of themselves.
fn plugin(bytes: &[u8]) {
    let _ = lightbox::loader::preflight(&file("libinput.so", bytes));
    if let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) {
        let _ = serde_json::to_string(&manifest);
    }
    let _ = serde_json::from_slice::<Plan>(bytes);
    if let Ok(spec) = serde_json::from_slice::<ModelSpec>(bytes) {
        let _ = (spec.check_rules(&spec.rules), spec.classes(), spec.attention_blocks());
    }
}

/// A worker's lines, and records of units.
fn events(bytes: &[u8]) {
    use lightbox::run::{events, folder};
    let _ = serde_json::from_slice::<events::Stamped>(bytes);
    let _ = serde_json::from_slice::<events::Order>(bytes);
    let _ = serde_json::from_slice::<folder::Record>(bytes);
    let _ = serde_json::from_slice::<folder::Cells>(bytes);
    let _ = serde_json::from_slice::<folder::Environment>(bytes);
}

/// A model of one layer, which is asked by messages that no SDK wrote.
struct Sum;

impl Model for Sum {
    fn spec(&self) -> ModelSpec {
        ModelSpec::new("sum", InputSpec { size: vec![4, 4], ..InputSpec::imagenet(4) }, 2)
    }

    fn run(&self, request: &Request) -> lightbox_sdk::Result<Response> {
        let n = request.batch();
        Ok(Response::of(Array::from_vec(&[n, 2], vec![0f32; 2 * n])?))
    }

    fn parameters(&self) -> lightbox_sdk::Result<Named> {
        Ok(vec![])
    }

    fn load(&mut self, _: Named) -> lightbox_sdk::Result<LoadReport> {
        Ok(LoadReport::default())
    }

    fn fork_with(&self, _: Named) -> lightbox_sdk::Result<Box<dyn Model>> {
        Ok(Box::new(Sum))
    }
}

/// Messages of the wire, as descriptions and as requests to a model.
fn messages(bytes: &[u8]) {
    let _ = serde_json::from_slice::<wire::RequestMessage>(bytes);
    let _ = serde_json::from_slice::<wire::ResponseMessage>(bytes);
    let _ = serde_json::from_slice::<wire::NamedMessage>(bytes);
    let _ = serde_json::from_slice::<wire::ExplainMessage>(bytes);
    let _ = serde_json::from_slice::<wire::FitMessage>(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let images = Array::from_vec(&[1, 3, 4, 4], vec![0.5f32; 48]);
        let classes = Array::from_vec(&[1], vec![1i64]);
        if let (Ok(images), Ok(classes)) = (images, classes) {
            let _ = ModelHandle::of("sum", Box::new(Sum)).send(text, &[images, classes]);
        }
    }
}

/// A line of another process, whose arrays are looked for in a segment and read wherever they are said to be; and the same numbers as
/// a handle that a plugin hands over, its memory as large as they claim or refused.
fn frame(bytes: &[u8]) {
    use lightbox::remote::channel::Frame;
    use lightbox::remote::memory::{Mapped, Pool};
    use lightbox_sdk::DType;
    let Ok(frame) = serde_json::from_slice::<Frame>(bytes) else { return };
    let mut mapped = Mapped::default();
    let one = Array::from_vec(&[1000], vec![1f32; 1000]).and_then(|a| Pool::default().lend(&[a]));
    if let Some(file) = one.ok().and_then(|lent| lent.new) {
        let _ = mapped.add(0, file);
    }
    let read = |array: &Array| {
        let _ =
            (array.view::<f32>().map(|v| v.sum()), array.view::<u8>().map(|v| v.len()), array.view::<bool>().is_ok());
        let _ = array.share_tensor();
    };
    mapped.arrays(frame.segment, &frame.arrays).into_iter().flatten().for_each(|array| read(&array));
    // Strides are the offsets' digits: any number may be one.
    for piece in frame.arrays.iter().take(8) {
        let strides: Vec<i64> = piece.shape.iter().map(|n| n ^ piece.offset as i64).collect();
        let reach = piece.shape.iter().zip(&strides).map(|(n, s)| i128::from(*n - 1).max(0) * i128::from((*s).max(0)));
        let wanted = reach.sum::<i128>() + 1;
        let memory = vec![1u64; 512];
        let fits = wanted <= 512 && piece.shape.iter().all(|n| *n >= 0);
        let Some(dtype) = DType::of_name(&piece.dtype) else { continue };
        let data = memory.as_ptr() as *mut std::ffi::c_void;
        // SAFETY: it is read only where all that it claims lies within the memory, elements of up to 8 bytes.
        let made = unsafe { Array::from_raw_parts(memory, data, dtype, &piece.shape, &strides) };
        if let (Ok(array), true) = (made, fits) {
            read(&array);
        }
    }
}

fn chosen() -> Target {
    static CHOSEN: OnceLock<Target> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        let name = std::env::var("LIGHTBOX_FUZZ_TARGET").unwrap_or_default();
        let names: Vec<&str> = TARGETS.iter().map(|(n, _)| *n).collect();
        let found = TARGETS.iter().find(|(n, _)| *n == name);
        found
            .map(|(_, f)| *f)
            .unwrap_or_else(|| panic!("LIGHTBOX_FUZZ_TARGET is `{name}`, not one of {}", names.join(", ")))
    })
}

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| chosen()(bytes));
