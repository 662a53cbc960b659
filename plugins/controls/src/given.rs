//! Maps that were made elsewhere, read from a file by the images' names: the inverse of `lightbox maps`.
//!
//! `.safetensors` and `.npz` hold an array [h, w] an image under its name; `.npy` holds [images, h, w], and the file
//! that `names` says the names, a line each: both are part of a run's identity. A name is that of the data source (`a.png`), or the same without its ending. An image that the file lacks, or whose map
//! is no [h, w] of finite size, has a map of NaN: it counts as failed, and the log names it.

use lightbox_sdk::ndarray::Array3;
use lightbox_sdk::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

register_explainer!(Given);

struct Given;

#[derive(Params)]
struct Settings {
    /// .safetensors, .npz or .npy with the maps
    #[param(default = "")]
    file: PathBuf,
    /// of .npy: the images' names, a line each
    #[param(default = "")]
    names: PathBuf,
}

type Map = lightbox_sdk::ndarray::Array2<f32>;

/// The largest map, in values.
const LARGEST: usize = 1 << 26;

fn wrong(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::invalid(format!("{}: {what}", path.display()))
}

/// An `.npy` array of floats as float32, its shape and its values.
fn npy(path: &Path, bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
    let broken = |e: std::io::Error| wrong(path, format!("no NumPy array of floats: {e}"));
    let file = lightbox_sdk::guard(|| npyz::NpyFile::new(bytes).map_err(broken))?;
    if file.order() == npyz::Order::Fortran && file.shape().len() > 1 {
        return Err(wrong(path, "the array is in Fortran's order; save numpy.ascontiguousarray(maps)"));
    }
    let shape: Vec<usize> = file.shape().iter().map(|n| *n as usize).collect();
    let values = match file.try_data::<f32>() {
        Ok(data) => data.collect::<std::io::Result<Vec<f32>>>().map_err(broken)?,
        Err(file) => match file.try_data::<f64>() {
            Ok(data) => data.map(|v| v.map(|v| v as f32)).collect::<std::io::Result<_>>().map_err(broken)?,
            Err(file) => return Err(wrong(path, format!("an array of {}, of float32 expected", file.dtype().descr()))),
        },
    };
    Ok((shape, values))
}

/// Arrays by name, whatever their shape.
fn read(path: &Path, names: &Path) -> Result<HashMap<String, (Vec<usize>, Vec<f32>)>> {
    let bytes = std::fs::read(path).map_err(|e| wrong(path, e))?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => {
            let file = safetensors::SafeTensors::deserialize(&bytes).map_err(|e| wrong(path, e))?;
            let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let double = |b: &[u8]| f64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]) as f32;
            let one = |(name, view): (String, safetensors::tensor::TensorView<'_>)| {
                let values = match view.dtype() {
                    safetensors::Dtype::F32 => view.data().chunks_exact(4).map(float).collect(),
                    safetensors::Dtype::F64 => view.data().chunks_exact(8).map(double).collect(),
                    other => return Err(wrong(path, format!("{name} is {other:?}, F32 expected"))),
                };
                Ok((name, (view.shape().to_vec(), values)))
            };
            file.tensors().into_iter().map(one).collect()
        }
        Some("npz") => {
            let mut zip = zip::ZipArchive::new(std::io::Cursor::new(&bytes)).map_err(|e| wrong(path, e))?;
            let mut all = HashMap::new();
            for at in 0..zip.len() {
                let mut entry = zip.by_index(at).map_err(|e| wrong(path, e))?;
                let name = entry.name().strip_suffix(".npy").unwrap_or(entry.name()).to_string();
                let mut content = Vec::new();
                let limit = (LARGEST * 8 + 4096) as u64;
                std::io::copy(&mut std::io::Read::take(&mut entry, limit), &mut content).map_err(|e| wrong(path, e))?;
                all.insert(name, npy(path, &content)?);
            }
            Ok(all)
        }
        Some("npy") => {
            let (shape, values) = npy(path, &bytes)?;
            if names.as_os_str().is_empty() {
                return Err(wrong(
                    path,
                    "which maps are whose, names=FILE says, a line each (`lightbox maps` writes it)",
                ));
            }
            let text = std::fs::read_to_string(names).map_err(|e| wrong(names, e))?;
            let names: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            let [count, rest @ ..] = shape.as_slice() else { return Err(wrong(path, "no array [images, h, w]")) };
            if names.len() != *count {
                return Err(wrong(path, format!("{count} maps, and {} names in the file beside it", names.len())));
            }
            let size: usize = rest.iter().product();
            let part = |i: usize| values[i * size..(i + 1) * size].to_vec();
            Ok(names.into_iter().enumerate().map(|(i, n)| (n.to_string(), (rest.to_vec(), part(i)))).collect())
        }
        _ => Err(wrong(path, "a file .safetensors, .npz or .npy is expected")),
    }
}

/// The map of an image, or why there is none.
fn map(all: &HashMap<String, (Vec<usize>, Vec<f32>)>, name: &str) -> std::result::Result<Map, String> {
    let stem = Path::new(name).with_extension("").to_string_lossy().into_owned();
    let found = all.get(name).or_else(|| all.get(&stem)).ok_or_else(|| format!("no map of {name}"))?;
    let (shape, values) = found;
    let [h, w] = match shape.as_slice() {
        [h, w] | [1, h, w] => [*h, *w],
        _ => return Err(format!("the map of {name} is {shape:?}, [h, w] is expected")),
    };
    if h * w == 0 || h * w > LARGEST {
        return Err(format!("the map of {name} is {h} x {w}"));
    }
    Map::from_shape_vec((h, w), values.clone()).map_err(|e| format!("the map of {name}: {e}"))
}

/// The nearest value of a map of another size, at the centre of each place: maps of one batch are of one size.
fn resized(map: &Map, (h, w): (usize, usize)) -> Map {
    let (from_h, from_w) = map.dim();
    Map::from_shape_fn((h, w), |(i, j)| map[[(2 * i + 1) * from_h / (2 * h), (2 * j + 1) * from_w / (2 * w)]])
}

impl Explainer for Given {
    type Params = Settings;

    fn spec(&self) -> ExplainerSpec {
        ExplainerSpec::new("given", "Maps of a file", Family::Other, Reference::own("Maps that were made elsewhere"))
            .version(env!("CARGO_PKG_VERSION"))
            .formula("what the file has for the image")
            .cost("none: it looks at no model")
            .notes("An image that the file lacks counts as failed; `lightbox maps` writes such files.")
    }

    fn bind(&self, _: &ModelSpec, params: Settings) -> Result<Bound> {
        if params.file.as_os_str().is_empty() {
            return Ok(Bound::not_applicable("no file is named: given:file=maps.safetensors"));
        }
        // Read when the first image comes, not whenever somebody asks what there is.
        let file: Mutex<Option<HashMap<String, (Vec<usize>, Vec<f32>)>>> = Mutex::new(None);
        Ok(Bound::new(Needs::default(), move |context| {
            let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let all = match &mut *file {
                Some(all) => all,
                none => none.insert(read(&params.file, &params.names)?),
            };
            let name = |b: usize| {
                let record = context.record(b).filter(|r| !r.name.is_empty());
                record
                    .map(|r| r.name.as_str())
                    .ok_or_else(|| Error::unsupported("these images have no names; use it in a run"))
            };
            let rows = 0..context.targets.len();
            let found: Vec<_> = rows.map(|b| Ok(map(all, name(b)?))).collect::<Result<_>>()?;
            let sizes = found.iter().flatten().map(Map::dim);
            let size = sizes.max_by_key(|(h, w)| h * w).unwrap_or((1, 1));
            let mut maps = Array3::from_elem((found.len(), size.0, size.1), f32::NAN);
            for (mut to, from) in maps.outer_iter_mut().zip(&found) {
                match from {
                    Ok(map) if map.dim() == size => to.assign(map),
                    Ok(map) => to.assign(&resized(map, size)),
                    Err(why) => context.log(&format!("given: {}: {why}", params.file.display())),
                }
            }
            Ok(Array::from_ndarray(maps)?.into())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lightbox_sdk::ndarray::{Ix2, Ix3};

    fn context(names: &[&str]) -> ContextBuilder {
        let images = Array::from_vec(&[names.len(), 3, 4, 4], vec![0.5f32; names.len() * 48]).unwrap();
        let record = |n: &&str| ImageRecord { name: n.to_string(), ..ImageRecord::default() };
        ContextBuilder::new(ModelSpec::new("none", InputSpec::imagenet(4), 2), images)
            .records(names.iter().map(record).collect())
    }

    /// The bytes of an `.npy` file of float32.
    fn file(shape: &str, values: &[f32]) -> Vec<u8> {
        let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
        header += &" ".repeat(63 - (10 + header.len()) % 64);
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        bytes
    }

    fn explain(path: &Path, names: &[&str]) -> Result<Array3<f32>> {
        let list =
            if path.extension().is_some_and(|e| e == "npy") { path.with_extension("txt") } else { PathBuf::new() };
        let context = context(names).param("file", path.to_string_lossy().into_owned());
        let maps = context.param("names", list.to_string_lossy().into_owned()).explain(&Given)?;
        Ok(maps.array.to_ndarray::<f32>()?.into_dimensionality::<Ix3>()?)
    }

    #[test]
    fn maps_are_found_by_name_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.npy");
        std::fs::write(&path, file("2, 2, 2", &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])).unwrap();
        assert!(explain(&path, &["a.png"]).unwrap_err().message.contains("m.txt"));
        let without = context(&["a.png"]).param("file", path.to_string_lossy().into_owned()).explain(&Given);
        assert!(without.unwrap_err().message.contains("names=FILE says, a line each"));
        std::fs::write(folder.path().join("m.txt"), "b.png\na\n").unwrap();
        let maps = explain(&path, &["a.png", "c.png", "b.png"]).unwrap();
        assert_eq!(
            maps.index_axis(lightbox_sdk::ndarray::Axis(0), 0).into_dimensionality::<Ix2>().unwrap()[[1, 1]],
            7.0
        );
        assert!(maps[[1, 0, 0]].is_nan() && maps[[1, 1, 1]].is_nan(), "c has none");
        assert_eq!(maps[[2, 0, 1]], 1.0);
        std::fs::write(folder.path().join("m.txt"), "b.png\n").unwrap();
        assert!(explain(&path, &["a.png"]).unwrap_err().message.contains("2 maps, and 1 names"));
    }

    #[test]
    fn safetensors_and_npz_hold_a_map_an_image() {
        use std::io::Write;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.safetensors");
        let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = |shape: &[usize], bytes| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.to_vec(), bytes).unwrap()
        };
        let all = [("a.png", view(&[2, 3], &bytes)), ("wide.png", view(&[6], &bytes))];
        safetensors::serialize_to_file(all, None, &path).unwrap();
        let maps = explain(&path, &["a.png", "wide.png"]).unwrap();
        assert_eq!((maps.dim(), maps[[0, 1, 2]]), ((2, 2, 3), 6.0));
        assert!(maps[[1, 0, 0]].is_nan(), "six values in a row are no map");

        let path = folder.path().join("m.npz");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        for (name, shape, values) in [("a.png.npy", "1, 1", &[9.0][..]), ("b.npy", "2, 2", &[1.0, 2.0, 3.0, 4.0])] {
            zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
            zip.write_all(&file(shape, values)).unwrap();
        }
        zip.finish().unwrap();
        let maps = explain(&path, &["a.png", "b.png"]).unwrap();
        assert_eq!((maps.dim(), maps[[0, 1, 1]], maps[[1, 1, 1]]), ((2, 2, 2), 9.0, 4.0));
    }

    #[test]
    fn files_that_hold_none_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for (name, said) in [
            ("m.npy", "no NumPy array"),
            ("m.npz", "m.npz"),
            ("m.safetensors", "m.safetensors"),
            ("m.txt", "is expected"),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, b"nothing").unwrap();
            let error = explain(&path, &["a.png"]).unwrap_err().message;
            assert!(error.contains(said), "{name}: {error}");
        }
        let error = context(&["a.png"]).explain(&Given).unwrap_err().message;
        assert!(error.contains("no file is named"), "{error}");
    }
}
