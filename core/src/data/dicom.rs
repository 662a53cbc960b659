//! DICOM files with a grey image: MONOCHROME2 as it is, MONOCHROME1 (white is 0) inverted, the modality's rescale applied.

use super::image::{Grey, MAX_PIXELS, Pixels};
use crate::{Error, Result};
use dicom_object::FileDicomObject;
use dicom_pixeldata::{ConvertOptions, ModalityLutOption, PhotometricInterpretation, PixelDecoder, VoiLutOption};

/// Decodes the first frame.
pub fn decode(bytes: &[u8]) -> Result<Grey> {
    let broken = |e: &dyn std::fmt::Display| Error::new(format!("the DICOM file is broken: {e}"));
    let object = FileDicomObject::from_reader(bytes).map_err(|e| broken(&e))?;
    let size = |name: &str| -> Result<u64> {
        let element = object.element_by_name(name).map_err(|e| broken(&e))?;
        element.to_int::<u64>().map_err(|e| broken(&e))
    };
    let (width, height) = (size("Columns")?, size("Rows")?);
    if width == 0 || height == 0 || width.saturating_mul(height) > MAX_PIXELS {
        return Err(Error::new(format!("the image has {width} x {height} pixels")));
    }
    let decoded = object.decode_pixel_data().map_err(|e| broken(&e))?;
    let inverted = match decoded.photometric_interpretation() {
        PhotometricInterpretation::Monochrome1 => true,
        PhotometricInterpretation::Monochrome2 => false,
        other => return Err(Error::new(format!("a grey DICOM image was expected, this one is {other}"))),
    };
    let options =
        ConvertOptions::new().with_modality_lut(ModalityLutOption::Default).with_voi_lut(VoiLutOption::Identity);
    let mut values: Vec<f32> = decoded.to_vec_with_options(&options).map_err(|e| broken(&e))?;
    values.truncate((width * height) as usize);
    if inverted {
        let greatest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        values.iter_mut().for_each(|v| *v = greatest - *v);
    }
    Grey::new(width as usize, height as usize, Pixels::F32(values))
}
