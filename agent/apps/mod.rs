//! What each product asks of the layers below: one module a product.

pub mod transcribe;
