//! The sound of a call, whole or in the ranges that a player asks for (RFC 9110, 14).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream::{self, Stream};
use tokio::task::spawn_blocking;

use super::App;
use super::auth::Access;
use super::calls::find;
use super::visit::Refused;
use crate::protocol::openai::ErrorBody;

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

/// GET /v1/calls/{call}/sound
pub(super) async fn play(
    State(app): State<Arc<App>>,
    Extension(access): Extension<Access>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let none = || {
        let error = ErrorBody::invalid("sound_not_found", "The sound of this call was not kept.");
        Refused::new(StatusCode::NOT_FOUND, error)
    };
    let path = find(&app, &access, &id)?.sound().ok_or_else(none)?;
    // What fails here fails because the file is not there (yet).
    let (file, length) = open(path).await.map_err(|_| none())?;
    let fixed: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, "audio/ogg"),
        (header::ACCEPT_RANGES, "bytes"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let (status, part) = match headers.get(header::RANGE).and_then(|value| range(value.to_str().ok()?, length)) {
        None => (StatusCode::OK, 0..length),
        Some(part) if part.is_empty() => {
            let all = [(header::CONTENT_RANGE, format!("bytes */{length}"))];
            return Ok((StatusCode::RANGE_NOT_SATISFIABLE, fixed, all).into_response());
        }
        Some(part) => (StatusCode::PARTIAL_CONTENT, part),
    };
    let body = Body::from_stream(read(file, part.clone()));
    let mut response = (status, fixed, [(header::CONTENT_LENGTH, part.end - part.start)], body).into_response();
    if status == StatusCode::PARTIAL_CONTENT {
        let place = format!("bytes {}-{}/{length}", part.start, part.end - 1);
        response.headers_mut().insert(header::CONTENT_RANGE, place.parse().expect("digits are a header's value"));
    }
    Ok(response)
}

async fn open(path: PathBuf) -> io::Result<(File, u64)> {
    let open = move || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    spawn_blocking(open).await.map_err(io::Error::other)?
}

/// The bytes that are asked for of so many, none if they are not there; `None` where all are to be sent: what is no range of bytes counts for nothing,
/// and several at once are more than any player needs.
fn range(asked: &str, length: u64) -> Option<Range<u64>> {
    let (first, last) = asked.strip_prefix("bytes=")?.split_once('-')?;
    let number = |text: &str| text.trim().parse::<u64>().ok();
    if first.trim().is_empty() {
        let last = number(last)?;
        return Some(length.saturating_sub(last)..length);
    }
    let first = number(first)?;
    let last = if last.trim().is_empty() { u64::MAX } else { number(last)? };
    // The last before the first is no range.
    (first <= last).then(|| first.min(length)..last.saturating_add(1).min(length))
}

fn read(file: File, part: Range<u64>) -> impl Stream<Item = io::Result<Bytes>> {
    stream::unfold((Some(file), part), |(file, mut part)| async move {
        let mut file = file.filter(|_| !part.is_empty())?;
        let (start, count) = (part.start, (part.end - part.start).min(PIECE));
        let piece = spawn_blocking(move || {
            let mut bytes = vec![0; count as usize];
            file.seek(SeekFrom::Start(start))?;
            file.read_exact(&mut bytes)?;
            Ok((file, bytes))
        });
        // After an error nothing comes: the player sees that it got too little.
        match piece.await.map_err(io::Error::other).and_then(|read| read) {
            Ok((file, bytes)) => {
                part.start += count;
                Some((Ok(Bytes::from(bytes)), (Some(file), part)))
            }
            Err(error) => Some((Err(error), (None, part))),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::range;

    #[test]
    fn ranges_are_read_as_rfc_9110_has_them() {
        for (asked, wanted) in [
            ("bytes=0-", Some(0..100)),
            ("bytes=10-19", Some(10..20)),
            ("bytes=10-10", Some(10..11)),
            ("bytes=90-1000", Some(90..100)),
            ("bytes=-30", Some(70..100)),
            ("bytes=-1000", Some(0..100)),
            ("bytes=-0", Some(100..100)),
            ("bytes=100-", Some(100..100)),
            ("bytes=100-200", Some(100..100)),
            ("bytes=99-", Some(99..100)),
            ("bytes=20-10", None),
            ("bytes=0-10,20-30", None),
            ("bytes=a-b", None),
            ("bytes=-", None),
            ("bytes=", None),
            ("bytes=0-18446744073709551615", Some(0..100)),
            ("lines=0-10", None),
        ] {
            assert_eq!(range(asked, 100), wanted, "{asked}");
        }
        assert_eq!(range("bytes=0-", 0), Some(0..0));
    }
}
