//! Pictures: a map over its image, and sheets of them. The colour map is inferno, which is perceptually uniform.

use crate::Result;
use crate::data::image::write_png_rgb;
use font8x8::UnicodeFonts;
use std::path::Path;

/// An RGB picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
    /// Row-major, three bytes a pixel.
    pub rgb: Vec<u8>,
}

/// The outline of a mask is drawn in this colour, which inferno does not hold.
const OUTLINE: [u8; 3] = [64, 224, 255];

impl Picture {
    /// One of a single colour.
    pub fn new(width: usize, height: usize, colour: [u8; 3]) -> Self {
        Picture { width, height, rgb: colour.repeat(width * height) }
    }

    /// A grey image.
    pub fn grey(pixels: &[u8], width: usize) -> Self {
        let rgb = pixels.iter().flat_map(|&p| [p, p, p]).collect();
        Picture { width, height: pixels.len() / width, rgb }
    }

    /// Blends a map (values in [0, 1], the picture's shape) over the picture; strong values cover more.
    pub fn overlay(&mut self, map: &[f32]) {
        for (pixel, &value) in self.rgb.chunks_exact_mut(3).zip(map) {
            let value = f64::from(value.clamp(0.0, 1.0));
            let colour = colorous::INFERNO.eval_continuous(value);
            let alpha = 0.25 + 0.5 * value;
            for (channel, c) in pixel.iter_mut().zip([colour.r, colour.g, colour.b]) {
                *channel = (f64::from(*channel) * (1.0 - alpha) + f64::from(c) * alpha + 0.5) as u8;
            }
        }
    }

    /// Draws the outer border of a mask (the picture's shape).
    pub fn outline(&mut self, mask: &[u8]) {
        let (w, h) = (self.width, self.height);
        let inside =
            |x: i64, y: i64| x >= 0 && y >= 0 && x < w as i64 && y < h as i64 && mask[y as usize * w + x as usize] != 0;
        for y in 0..h as i64 {
            for x in 0..w as i64 {
                let beside = inside(x - 1, y) || inside(x + 1, y) || inside(x, y - 1) || inside(x, y + 1);
                if beside && !inside(x, y) {
                    self.set(x as usize, y as usize, OUTLINE);
                }
            }
        }
    }

    fn set(&mut self, x: usize, y: usize, colour: [u8; 3]) {
        if x < self.width && y < self.height {
            self.rgb[(y * self.width + x) * 3..][..3].copy_from_slice(&colour);
        }
    }

    /// Enlarges by a whole factor, pixel by pixel.
    pub fn enlarge(&self, factor: usize) -> Self {
        let mut large = Picture::new(self.width * factor, self.height * factor, [0; 3]);
        for y in 0..large.height {
            for x in 0..large.width {
                let at = (y / factor * self.width + x / factor) * 3;
                large.set(x, y, [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]);
            }
        }
        large
    }

    /// Copies another picture to (x, y); what passes the border is cut.
    pub fn paste(&mut self, other: &Picture, x: usize, y: usize) {
        for (row, line) in other.rgb.chunks_exact(other.width * 3).enumerate() {
            for (column, pixel) in line.chunks_exact(3).enumerate() {
                self.set(x + column, y + row, [pixel[0], pixel[1], pixel[2]]);
            }
        }
    }

    /// Writes text, 8 x 8 pixels a character, black.
    pub fn text(&mut self, text: &str, x: usize, y: usize) {
        for (i, c) in text.chars().enumerate() {
            let glyph = font8x8::BASIC_FONTS.get(c).unwrap_or([0x7e; 8]);
            for (dy, row) in glyph.into_iter().enumerate() {
                for dx in (0..8).filter(|dx| row >> dx & 1 == 1) {
                    self.set(x + i * 8 + dx, y + dy, [0; 3]);
                }
            }
        }
    }

    /// Writes a PNG file.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_png_rgb(path, self.width, self.height, &self.rgb)
    }
}

/// A sheet: a row of pictures an image, a column a method, titles above (of several lines) and at the left.
pub fn sheet(columns: &[String], rows: &[(String, Vec<Picture>)]) -> Picture {
    let gap = 6;
    let largest = |of: fn(&Picture) -> usize| rows.iter().flat_map(|(_, p)| p).map(of).max().unwrap_or(64);
    let cell = (largest(|p| p.width), largest(|p| p.height));
    let (cw, ch) = (cell.0 + gap, cell.1 + gap);
    let fit = |text: &str, width: usize| text.chars().take(width / 8).collect::<String>();
    let left = rows.iter().map(|(t, _)| t.chars().count()).max().unwrap_or(0).min(24) * 8 + 2 * gap;
    let top = gap + 10 * columns.iter().map(|t| t.lines().count()).max().unwrap_or(1) + gap;
    let mut sheet = Picture::new(left + columns.len() * cw, top + rows.len() * ch, [255; 3]);
    for (c, title) in columns.iter().enumerate() {
        for (l, line) in title.lines().enumerate() {
            sheet.text(&fit(line, cw), left + c * cw, gap + l * 10);
        }
    }
    for (r, (title, pictures)) in rows.iter().enumerate() {
        let y = top + r * ch;
        sheet.text(&fit(title, left), gap, y + cell.1 / 2);
        for (c, picture) in pictures.iter().enumerate() {
            sheet.paste(picture, left + c * cw, y);
        }
    }
    sheet
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_brighter_where_the_map_is() {
        let mut picture = Picture::grey(&[100; 4], 2);
        picture.overlay(&[0.0, 1.0, 0.5, f32::NAN]);
        let sum = |i: usize| picture.rgb[i * 3..i * 3 + 3].iter().map(|&v| u32::from(v)).sum::<u32>();
        assert!(sum(1) > sum(2) && sum(2) > sum(0));
    }

    #[test]
    fn an_outline_goes_around() {
        let mut picture = Picture::grey(&[0; 25], 5);
        let mut mask = [0; 25];
        mask[12] = 1;
        picture.outline(&mask);
        let drawn: Vec<usize> = (0..25).filter(|&i| picture.rgb[i * 3..][..3] == OUTLINE).collect();
        assert_eq!(drawn, [7, 11, 13, 17]);
    }

    #[test]
    fn a_sheet_holds_its_cells() {
        let cell = Picture::new(20, 10, [1, 2, 3]);
        let sheet = sheet(&["image".into(), "gradcam".into()], &[("n1".into(), vec![cell.clone(), cell])]);
        let cells = sheet.rgb.chunks_exact(3).filter(|p| *p == [1, 2, 3]).count();
        assert_eq!(cells, 400);
    }
}
