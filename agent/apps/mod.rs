//! What each product asks of the layers below: one module a product.

pub mod calls;
pub mod captions;
pub mod transcribe;
