//! G.711, the sound of telephones: µ-law and A-law bytes at 8 kHz. Source: ITU-T G.711 (1988), tables 1 and 2.

/// One µ-law byte as a sample in −1..1.
pub fn ulaw(byte: u8) -> f32 {
    let byte = !byte;
    let exponent = (byte >> 4) & 7;
    let magnitude = ((i32::from(byte & 0x0f) << 3) + 0x84) << exponent;
    let value = magnitude - 0x84;
    (if byte & 0x80 == 0 { value } else { -value }) as f32 / 32768.0
}

/// One A-law byte as a sample in −1..1.
pub fn alaw(byte: u8) -> f32 {
    let byte = byte ^ 0x55;
    let exponent = (byte >> 4) & 7;
    let mantissa = (i32::from(byte & 0x0f) << 4) + 8;
    let value = if exponent == 0 { mantissa } else { (mantissa + 0x100) << (exponent - 1) };
    (if byte & 0x80 == 0 { -value } else { value }) as f32 / 32768.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_the_loudest_values_are_as_in_the_standard() {
        assert_eq!((ulaw(0xff), ulaw(0x7f)), (0.0, -0.0));
        assert_eq!((ulaw(0x80) * 32768.0, ulaw(0x00) * 32768.0), (32124.0, -32124.0));
        assert_eq!((alaw(0xd5) * 32768.0, alaw(0x55) * 32768.0), (8.0, -8.0));
        assert_eq!((alaw(0xaa) * 32768.0, alaw(0x2a) * 32768.0), (32256.0, -32256.0));
    }
}
