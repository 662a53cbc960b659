//! Decodes and resizes all images to a size, or takes them from the cache of an earlier run.

use super::cache::Cache;
use super::events::Event;
use super::folder::{FileState, hash, read_json, write_json};
use super::reading::Reading;
use super::unit::{Unit, size_text};
use super::worker::Worker;
use crate::error::{Error, Exit, Result};
use lightbox_core::data::duplicates::Duplicates;
use lightbox_core::data::store;
use lightbox_core::files;
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::Path;

impl Worker {
    /// Prepares the images of a run at this height and width; how many there are.
    pub(super) fn prepare(&mut self, size: [usize; 2], unit: &Unit) -> Result<usize> {
        let (source, key) = (self.source()?, unit.key());
        let sources = self.folder.sources();
        let states = match sources.is_file() {
            true => read_json(&sources)?,
            false => {
                let mut files: Vec<_> = (0..source.samples().len()).flat_map(|i| source.files(i)).collect();
                files.sort();
                files.dedup();
                let mut states: Vec<FileState> = Vec::new();
                for part in files.chunks(256) {
                    self.sink.say(Event::Progress { unit: key.clone(), done: states.len(), of: files.len() });
                    states.extend(part.par_iter().map(|f| FileState::of(f)).collect::<Result<Vec<_>>>()?);
                }
                write_json(&sources, &states)?;
                // Once a run: the images of another size are the same files.
                let checksums: HashMap<&Path, &str> =
                    states.iter().map(|s| (s.file.as_path(), s.sha256.as_str())).collect();
                let known = |file: &Path| match checksums.get(file) {
                    Some(checksum) => Ok(checksum.to_string()),
                    None => files::sha256(file),
                };
                if let Some(text) = Duplicates::find(source.as_ref(), &self.plan.split, &known)?.note() {
                    self.sink.say(Event::Note { text });
                }
                states
            }
        };
        let (sink, file, images) = (self.sink.clone(), self.folder.prepared(size), source.samples().len());
        let note = |text: String| sink.say(Event::Note { text });
        let cache = Cache::of_user().filter(|_| !file.is_file());
        let unnamed = |e| note(format!("prepared images are not looked for in the cache: {e}"));
        let name = cache.as_ref().and_then(|_| self.prepared_id(size, &states).map_err(unnamed).ok());
        let cache = cache.zip(name);
        if let Some((cache, name)) = &cache {
            match cache.take(name, images, &file) {
                Ok(true) => {
                    note(format!(
                        "images of {}: {} (as an earlier run prepared them)",
                        size_text(size),
                        cache.file(name).display()
                    ));
                    return Ok(images);
                }
                Ok(false) => {}
                Err(e) => note(format!("prepared images could not be taken from the cache: {e}")),
            }
        }
        // Other workers wait for the images: all cores are this one's, whatever its threads.
        let pool =
            rayon::ThreadPoolBuilder::new().build().map_err(|e| Error::new(Exit::Other, format!("threads: {e}")))?;
        pool.install(|| {
            let mut progress = |done, of| sink.say(Event::Progress { unit: key.clone(), done, of });
            let now = Reading::new(&self.folder.reading());
            let samples = source.samples();
            let reading = |i: Option<usize>| now.set(i.map(|i| samples[i].id.as_str()));
            store::prepare(source.as_ref(), size, &file, &mut progress, &reading)
        })?;
        // What was hashed is what was read, or the set has no name.
        let same = || states.iter().all(|s| s.is_unchanged().unwrap_or(false));
        if let Some((cache, name)) = cache.as_ref().filter(|_| same())
            && let Err(e) = cache.keep(&file, name)
        {
            note(format!(
                "the prepared images could not be kept for other runs: {e} (hint: LIGHTBOX_CACHE names the folder)"
            ));
        }
        Ok(images)
    }

    /// What prepared images depend on, as a name: this program, the data's settings, what its tables say, and the contents
    /// of its files.
    fn prepared_id(&self, size: [usize; 2], states: &[FileState]) -> Result<String> {
        let json = |value: serde_json::Result<String>| value.map_err(|e| Error::input(e.to_string()));
        let parts = [
            // What runs, though a new build may lie in its place.
            files::sha256(Path::new("/proc/self/exe"))?,
            lightbox_core::is_plain().to_string(),
            size_text(size),
            json(serde_json::to_string(&self.plan.spec.data))?,
            json(serde_json::to_string(&self.plan.spec.task))?,
            self.plan.environment.data.clone(),
        ];
        Ok(hash(parts.into_iter().chain(states.iter().map(|s| s.sha256.clone()))))
    }
}
