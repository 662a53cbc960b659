//! What plugins may ask of this host during a call.

use crate::images::read_images;
use crate::watch::Watch;
use lightbox_core::data::preparation::Preparation;
use lightbox_sdk::spec::InputSpec;
use lightbox_sdk::{Array, Error, FitBatch, Host, Result};
use std::path::Path;
use tch::Device;

/// Gives the next batch of a fit, from the first one again where it is told to; `None` after the last.
pub type Batches<'a> = &'a dyn Fn(bool) -> Result<Option<FitBatch>>;

/// A watch as the host of a plugin's call, and the batches of a fit where there is one.
pub struct Calls<'a> {
    /// Who hears of it.
    pub watch: &'a dyn Watch,
    /// The model's input.
    pub input: &'a InputSpec,
    /// Where the explainer's arrays are.
    pub device: Device,
    /// How images that are read are prepared; none for a model of volumes.
    pub preparation: Option<&'a Preparation>,
    /// The batches of a fit.
    pub fit: Option<Batches<'a>>,
}

impl Host for Calls<'_> {
    fn cancelled(&self) -> bool {
        self.watch.alive();
        self.watch.cancelled()
    }

    fn log(&self, line: &str) {
        self.watch.alive();
        self.watch.log(line);
    }

    fn progress(&self, done: u64, of: u64) {
        self.watch.progress(done, of);
        self.watch.alive();
    }

    fn read_image(&self, path: &Path) -> Result<Array> {
        self.watch.alive();
        let preparation = self.preparation.ok_or_else(|| Error::unsupported("a model of volumes reads no images"))?;
        let read = || -> crate::error::Result<Array> {
            let images = read_images(&[path.to_path_buf()], self.input, preparation)?;
            Ok(Array::from_tensor(&images.batch.f_squeeze_dim(0)?.f_to_device(self.device)?)?)
        };
        read().map_err(|e| Error::invalid(e.message))
    }

    fn fit_batch(&self, rewind: bool) -> Result<Option<FitBatch>> {
        self.watch.alive();
        match self.fit {
            Some(next) => next(rewind),
            None => Err(Error::unsupported("this call has no batches to fit on")),
        }
    }
}
