//! How an image file becomes what a model takes: the one place in which size, colour, intensity and depth are decided, for
//! the images of a run, those that explainers read, and those of `lightbox explain`.

use super::image::{Image, Intensity};
use super::reader;
use crate::Result;
use std::path::Path;

/// How finely an image's values in [0, 1] are kept. It is the image's own, whatever other images a set has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// 256 levels, of an image with 8 bits.
    Eight,
    /// 65536 levels, of a deeper one.
    Sixteen,
}

impl Depth {
    /// That of an image.
    pub fn of(image: &Image) -> Self {
        if image.is_8_bit() { Depth::Eight } else { Depth::Sixteen }
    }

    /// The greatest level.
    pub fn levels(self) -> f32 {
        if self == Depth::Eight { 255.0 } else { 65535.0 }
    }

    /// The level of a value, from 0; what lies outside [0, 1] goes to the nearer end.
    pub fn level(self, value: f32) -> u16 {
        (value.clamp(0.0, 1.0) * self.levels() + 0.5) as u16
    }

    /// What makes levels a model's input, a channel: `level * scale + shift` is `(level / levels - mean) / std`. Both are
    /// rounded to float32 here, once, so that whoever computes it with one rounding a step has the same bits.
    pub fn normalisation(self, mean: &[f64], std: &[f64]) -> Vec<(f32, f32)> {
        let levels = f64::from(self.levels());
        mean.iter().zip(std).map(|(m, s)| ((1.0 / levels / s) as f32, (-m / s) as f32)).collect()
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
}

/// A prepared image.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// How fine they are.
    pub depth: Depth,
    /// Channels first, row by row.
    pub values: Vec<u16>,
}

impl Preparation {
    /// Reads an image file.
    pub fn read(&self, path: &Path) -> Result<Image> {
        reader::read_by(path, self.colour, self.intensity)
    }

    /// An image at the size, each value at a level of the image's depth.
    pub fn levels(&self, image: &Image) -> Result<Levels> {
        let [height, width] = self.size;
        let depth = Depth::of(image);
        let values = image.resized((width, height), self.intensity)?;
        Ok(Levels { depth, values: values.into_iter().map(|v| depth.level(v)).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::image::Pixels;
    use super::*;

    #[test]
    fn a_depth_is_the_images_own() {
        let preparation = Preparation { size: [1, 5], colour: false, intensity: Intensity::Auto };
        let check = |pixels: Pixels, levels: f32| {
            let image = Image::new(2, 1, 1, pixels).unwrap();
            let found = preparation.levels(&image).unwrap();
            let wanted = image.resized((5, 1), Intensity::Auto).unwrap();
            let wanted: Vec<u16> = wanted.into_iter().map(|v| (v * levels + 0.5).floor() as u16).collect();
            assert_eq!((found.depth.levels(), found.values), (levels, wanted));
        };
        check(Pixels::U8(vec![0, 101]), 255.0);
        check(Pixels::U16(vec![0, 40001]), 65535.0);
    }
}
