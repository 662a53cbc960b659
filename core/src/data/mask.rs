//! Boxes and the masks they become.

/// A box in pixels of the original image; x and y are its left and top edge.
#[derive(Debug, Clone, Copy)]
pub struct BBox {
    /// Left edge, in pixels of the image's file.
    pub x: f64,
    /// Upper edge, in pixels.
    pub y: f64,
    /// In pixels.
    pub width: f64,
    /// In pixels.
    pub height: f64,
    /// What it marks; 1 in a binary task.
    pub class: usize,
    /// Its line in the file that it was read from; 0 for none.
    pub line: u64,
}

/// Two boxes are equal where they mark the same, wherever they were read.
impl PartialEq for BBox {
    fn eq(&self, other: &Self) -> bool {
        let all = |b: &BBox| (b.x, b.y, b.width, b.height, b.class);
        all(self) == all(other)
    }
}

impl BBox {
    /// A box of a binary task's finding.
    pub fn new(x: f64, y: f64, width: f64, height: f64) -> Self {
        BBox { x, y, width, height, class: 1, line: 0 }
    }

    /// The same box of another class.
    pub fn of(self, class: usize) -> Self {
        BBox { class, ..self }
    }

    /// Why the box cannot be one of an image of this size; `None` for a good one.
    pub fn fault(&self, width: usize, height: usize) -> Option<String> {
        let BBox { x, y, width: w, height: h, .. } = *self;
        if ![x, y, w, h].iter().all(|v| v.is_finite()) {
            return Some(format!("box ({x}, {y}, {w}, {h}) is not finite"));
        }
        if w <= 0.0 || h <= 0.0 {
            return Some(format!("box ({x}, {y}) has size {w} x {h}"));
        }
        // Annotators' boxes may pass the border by a pixel or so; one that does not touch the image is wrong.
        let (iw, ih) = (width as f64, height as f64);
        if x >= iw || y >= ih || x + w <= 0.0 || y + h <= 0.0 {
            let line = if self.line > 0 { format!("line {}: ", self.line) } else { String::new() };
            return Some(format!(
                "{line}box ({x}, {y}, {w} x {h}) lies outside the image of {width} x {height} pixels"
            ));
        }
        None
    }
}

/// Marks in `mask` (row-major, `size` = width and height, an image scaled from `original`) the ellipse inscribed in the
/// scaled box: pixels whose centre lies inside. The paper fits a circle into NODE21's boxes; in a square box the ellipse
/// is that circle. A box whose ellipse holds no centre marks the pixel of the ellipse's own centre, or, where that lies
/// outside the image, none. Marked pixels get the bits of `value`.
pub fn draw_ellipse(mask: &mut [u8], size: (usize, usize), original: (usize, usize), b: &BBox, value: u8) {
    let (sx, sy) = (size.0 as f64 / original.0 as f64, size.1 as f64 / original.1 as f64);
    let (rx, ry) = (b.width * sx / 2.0, b.height * sy / 2.0);
    let (cx, cy) = (b.x * sx + rx, b.y * sy + ry);
    let clamp = |v: f64, n: usize| (v.max(0.0) as usize).min(n - 1);
    let mut marked = false;
    for y in clamp(cy - ry, size.1)..=clamp(cy + ry, size.1) {
        for x in clamp(cx - rx, size.0)..=clamp(cx + rx, size.0) {
            let (dx, dy) = ((x as f64 + 0.5 - cx) / rx, (y as f64 + 0.5 - cy) / ry);
            if dx * dx + dy * dy <= 1.0 {
                mask[y * size.0 + x] |= value;
                marked = true;
            }
        }
    }
    let inside = cx >= 0.0 && cy >= 0.0 && cx < size.0 as f64 && cy < size.1 as f64;
    if !marked && inside {
        mask[clamp(cy, size.1) * size.0 + clamp(cx, size.0)] |= value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_circle_has_a_circles_area_and_place() {
        let mut mask = vec![0; 200 * 200];
        draw_ellipse(&mut mask, (200, 200), (400, 400), &BBox::new(100.0, 200.0, 80.0, 80.0), 1);
        let area = mask.iter().map(|&m| f64::from(m)).sum::<f64>();
        assert!((area / (std::f64::consts::PI * 400.0) - 1.0).abs() < 0.02, "{area}");
        assert_eq!((mask[120 * 200 + 70], mask[120 * 200 + 91], mask[101 * 200 + 51]), (1, 0, 0));
    }

    #[test]
    fn a_tiny_box_marks_one_pixel_and_a_border_box_stays_inside() {
        let mut mask = vec![0; 100];
        draw_ellipse(&mut mask, (10, 10), (1000, 1000), &BBox::new(300.0, 500.0, 2.0, 2.0), 1);
        assert_eq!((mask.iter().filter(|&&m| m == 1).count(), mask[53]), (1, 1));
        draw_ellipse(&mut mask, (10, 10), (10, 10), &BBox::new(8.0, -3.0, 6.0, 6.0), 1);
    }

    #[test]
    fn a_box_that_touches_a_corner_marks_nothing_outside_its_ellipse() {
        let mut mask = vec![0; 100];
        draw_ellipse(&mut mask, (10, 10), (10, 10), &BBox::new(-3.9, -3.9, 4.0, 4.0), 1);
        assert!(mask.iter().all(|&m| m == 0), "{mask:?}");
    }

    #[test]
    fn faults_are_named() {
        let check = |x, y, width, height, message: &str| {
            let fault = BBox::new(x, y, width, height).fault(100, 100).unwrap();
            assert!(fault.contains(message), "{fault}");
        };
        check(f64::NAN, 0.0, 1.0, 1.0, "not finite");
        check(5.0, 5.0, 0.0, 4.0, "has size 0 x 4");
        check(120.0, 5.0, 10.0, 4.0, "lies outside the image of 100 x 100 pixels");
        assert_eq!(BBox::new(95.0, 95.0, 10.0, 10.0).fault(100, 100), None);
    }
}
