//! How an image file becomes what a model takes: the one place in which size, colour, intensity and depth are decided, for
//! the images of a run, those that explainers read, and those of `lightbox explain`.

use super::image::{Image, Intensity};
use super::reader;
use crate::Result;
use std::path::Path;

/// How finely values in [0, 1] are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// 256 levels.
    Eight,
    /// 65536 levels.
    Sixteen,
    /// Each image's own: 256 levels of one with 8 bits, 65536 of a deeper one.
    OfImage,
}

impl Depth {
    /// The greatest level.
    fn levels(self) -> f32 {
        if self == Depth::Eight { 255.0 } else { 65535.0 }
    }

    /// The level of a value, from 0; what lies outside [0, 1] goes to the nearer end.
    pub fn level(self, value: f32) -> u32 {
        (value.clamp(0.0, 1.0) * self.levels() + 0.5) as u32
    }
}

/// How images are prepared.
#[derive(Debug, Clone, PartialEq)]
pub struct Preparation {
    /// Height and width.
    pub size: [usize; 2],
    /// Colour images keep three channels, and grey ones get them; otherwise colour becomes luminance.
    pub colour: bool,
    /// How values become [0, 1].
    pub intensity: Intensity,
    /// How finely they are kept.
    pub depth: Depth,
}

impl Preparation {
    /// Reads an image file.
    pub fn read(&self, path: &Path) -> Result<Image> {
        reader::read_by(path, self.colour, self.intensity)
    }

    /// An image at the size, channels first, values in [0, 1], not yet brought to a depth.
    pub fn values(&self, image: &Image) -> Result<Vec<f32>> {
        let [height, width] = self.size;
        image.resized((width, height), self.intensity)
    }

    /// The same with each value at one of the depth's levels: the levels that a run's store keeps. (The store normalises in one
    /// step, so the normalised values may differ in the last bit.)
    pub fn prepared(&self, image: &Image) -> Result<Vec<f32>> {
        let depth = match self.depth {
            Depth::OfImage if image.is_8_bit() => Depth::Eight,
            Depth::OfImage => Depth::Sixteen,
            depth => depth,
        };
        let values = self.values(image)?;
        Ok(values.into_iter().map(|v| depth.level(v) as f32 / depth.levels()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Pixels;
    use super::*;

    #[test]
    fn a_depth_is_the_sets_or_the_images_own() {
        let image = Image::new(2, 1, 1, Pixels::U8(vec![0, 101])).unwrap();
        let by = |depth| {
            Preparation { size: [1, 5], colour: false, intensity: Intensity::Auto, depth }.prepared(&image).unwrap()
        };
        let exact = |levels: f32| by_value(&image, levels);
        assert_eq!(by(Depth::OfImage), exact(255.0));
        assert_eq!(by(Depth::Sixteen), exact(65535.0));
        assert_ne!(by(Depth::Eight), by(Depth::Sixteen));
    }

    fn by_value(image: &Image, levels: f32) -> Vec<f32> {
        let values = image.resized((5, 1), Intensity::Auto).unwrap();
        values.into_iter().map(|v| (v * levels + 0.5).floor() / levels).collect()
    }
}
