//! Text to ids and back, from a checkpoint's `tokenizer.json` or from the vocabulary inside a GGUF.

use std::path::Path;

use serde_json::json;
use tokenizers::AddedToken;

use crate::checkpoint::gguf::{Gguf, Value};
use crate::prompt::Piece;
use crate::{Error, Result};

/// Where Qwen2 cuts text before its merges. Source: Qwen2.5's tokenizer.json.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GGUF's token types for control and user-defined tokens.
const ADDED: [i64; 2] = [3, 4];

/// A tokenizer that knows markers from text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    /// Recognises special tokens.
    control: tokenizers::Tokenizer,
    /// Takes everything as plain text.
    text: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is missing or is no tokenizer.
    pub fn from_file(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| Error::file(path, e))?;
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| Error::file(path, e))?;
        Self::new(tokenizer)
    }

    /// Builds Qwen2's byte-level BPE from a GGUF's metadata.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let lacks = |key: &str| Error::file(gguf.path(), format!("lacks {key}"));
        let Some(Value::Texts(tokens)) = gguf.get("tokenizer.ggml.tokens") else {
            return Err(lacks("tokenizer.ggml.tokens"));
        };
        let Some(Value::Texts(merges)) = gguf.get("tokenizer.ggml.merges") else {
            return Err(lacks("tokenizer.ggml.merges"));
        };
        let Some(Value::Ints(types)) = gguf.get("tokenizer.ggml.token_type") else {
            return Err(lacks("tokenizer.ggml.token_type"));
        };
        let vocab: serde_json::Map<_, _> = tokens.iter().enumerate().map(|(id, t)| (t.clone(), id.into())).collect();
        let added = tokens.iter().zip(types).enumerate().filter(|(_, (_, kind))| ADDED.contains(kind));
        let added: Vec<_> = added
            .map(|(id, (content, _))| {
                json!({"id": id, "content": content, "special": true,
                    "single_word": false, "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let whole = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            ]},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        });
        let tokenizer =
            tokenizers::Tokenizer::from_bytes(whole.to_string()).map_err(|e| Error::file(gguf.path(), e))?;
        Self::new(tokenizer)
    }

    fn new(control: tokenizers::Tokenizer) -> Result<Self> {
        let mut text = control.clone();
        // `encode_special_tokens` spares special tokens only, so all added ones become special here.
        let added: Vec<AddedToken> =
            text.get_added_tokens_decoder().into_values().map(|t| AddedToken { special: true, ..t }).collect();
        text.add_special_tokens(added).map_err(|e| Error::Tokenizer(e.to_string()))?;
        text.set_encode_special_tokens(true);
        Ok(Self { control, text })
    }

    /// Ids of text in which special tokens are recognised.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn control(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.control, text)
    }

    /// Ids of text from outside: `<|EOT|>` in it is six characters.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn text(&self, text: &str) -> Result<Vec<u32>> {
        encode(&self.text, text)
    }

    /// Ids of a piece of a prompt: of control text or of text from outside; a sound has none.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn ids(&self, piece: &Piece) -> Result<Vec<u32>> {
        match piece {
            Piece::Control(text) => self.control(text),
            Piece::Text(text) => self.text(text),
            Piece::Sound(_) => Ok(Vec::new()),
        }
    }

    /// The id of one special token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.control.token_to_id(token)
    }

    /// Text of one token by itself; a special token is written as it is.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn piece(&self, id: u32) -> Result<String> {
        self.control.decode(&[id], false).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// Text of ids, special tokens left out.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.control.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }
}

fn encode(tokenizer: &tokenizers::Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding = tokenizer.encode_fast(text, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
    Ok(encoding.get_ids().to_vec())
}

/// The state of turning a token stream into text without cutting a character that spans tokens.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// Tokens since the last clean border.
    ids: Vec<u32>,
    /// Bytes of their text that are out already.
    sent: usize,
}

/// Tokens after which a border is sought, so that a long stream costs the same at its end as at its beginning.
const WINDOW: usize = 16;

impl Tokenizer {
    /// Takes the next token of a stream, gives the text that is certain by now; special tokens appear as they are written.
    ///
    /// # Errors
    /// The tokenizer's own.
    pub fn stream(&self, state: &mut Detokenizer, id: u32) -> Result<String> {
        state.ids.push(id);
        let text = self.control.decode(&state.ids, false).map_err(|e| Error::Tokenizer(e.to_string()))?;
        // A character whose last bytes are still to come ends in a replacement character. One that stays for a window is real.
        if text.ends_with('\u{fffd}') && state.ids.len() < 2 * WINDOW {
            return Ok(String::new());
        }
        let new = text.get(state.sent..).unwrap_or_default().to_owned();
        state.sent = text.len();
        if state.ids.len() > WINDOW {
            *state = Detokenizer::default();
        }
        Ok(new)
    }
}
