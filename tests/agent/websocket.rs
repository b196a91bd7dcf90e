//! The WebSocket itself: fragments, UTF-8, close codes, and the largest frames, against the Realtime endpoint.

use futures_util::{SinkExt as _, StreamExt as _};
use proptest::prelude::*;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};

use crate::harness::{Client, Server, config, serve, soon};

/// A text message in fragments.
fn fragments(text: &[u8], cuts: &[usize]) -> Vec<Message> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (text.len() + 1)).collect();
    cuts.extend([0, text.len()]);
    cuts.sort_unstable();
    let last = cuts.len() - 2;
    let fragment = |(n, window): (usize, &[usize])| {
        let data = if n == 0 { Data::Text } else { Data::Continue };
        let piece = text[window[0]..window[1]].to_vec();
        Message::Frame(Frame::message(piece, OpCode::Data(data), n == last))
    };
    cuts.windows(2).enumerate().map(fragment).collect()
}

/// A text message in these fragments, a ping between each two.
async fn send_fragments(client: &mut Client, text: &[u8], cuts: &[usize]) {
    for (n, fragment) in fragments(text, cuts).into_iter().enumerate() {
        if n > 0 {
            client.raw(Message::Ping(vec![n as u8 - 1].into())).await;
        }
        client.raw(fragment).await;
    }
}

/// The message of an error, which echoes the event's id.
async fn echoed(client: &mut Client) -> String {
    client.expect("error").await["error"]["event_id"].as_str().unwrap().to_owned()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// However a message is cut, inside of characters too, it is the same message, and pings between its fragments are answered.
    #[test]
    fn fragments_do_not_matter(id in "[a-zé漢😀]{1,40}", cuts in prop::collection::vec(any::<usize>(), 0..12)) {
        runtime().block_on(async {
            let server = serve(config()).await;
            let mut client = server.connect().await;
            let text = json!({"type": "no.such.event", "event_id": id}).to_string();
            send_fragments(&mut client, text.as_bytes(), &cuts).await;
            assert_eq!(echoed(&mut client).await, id);
        });
    }

    /// Text that is no UTF-8 ends the connection with 1007, wherever it breaks and however it is cut, and nothing else.
    #[test]
    fn broken_utf8_is_told_by_its_close_code(before in "[a-zé漢]{0,20}", bad in prop::sample::select(vec![&b"\xff"[..], b"\xc3(", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"]), after in "[a-z]{0,20}", cuts in prop::collection::vec(any::<usize>(), 0..5)) {
        runtime().block_on(async {
            let server = serve(config()).await;
            let mut client = server.connect().await;
            let text = [before.as_bytes(), bad, after.as_bytes()].concat();
            // The server may close before the last fragment is there.
            for fragment in fragments(&text, &cuts) {
                drop(client.socket.send(fragment).await);
            }
            assert_eq!(client.close_frame().await.map(|frame| u16::from(frame.code)), Some(1007));
            alive(&server).await;
        });
    }

    /// A close with a code that may be sent is answered with a close; one that must not be is a broken protocol.
    #[test]
    fn close_codes_are_answered(code in prop_oneof![1000_u16..1016, 3000_u16..5000, prop::sample::select(vec![0_u16, 999, 1016, 1100, 2000, 2999, 5000, 65535])]) {
        runtime().block_on(async {
            let server = serve(config()).await;
            let mut client = server.connect().await;
            let allowed = matches!(code, 1000..=1003 | 1007..=1011 | 3000..=4999);
            // Registered later than the RFC: either is right.
            let unsure = matches!(code, 1012..=1014);
            let payload = [&code.to_be_bytes()[..], b"bye"].concat();
            client.raw(Message::Frame(Frame::message(payload, OpCode::Control(tokio_tungstenite::tungstenite::protocol::frame::coding::Control::Close), true))).await;
            let answer = client.close_frame().await.map(|frame| u16::from(frame.code));
            let returned = answer == Some(code) || answer == Some(1000);
            let broken = answer == Some(1002) || answer.is_none();
            assert!((returned && (allowed || unsure)) || (broken && !allowed), "{code}: {answer:?}");
            alive(&server).await;
        });
    }
}

async fn alive(server: &Server) {
    let mut client = server.connect().await;
    client.send(json!({"type": "no.such.event", "event_id": "x"})).await;
    assert_eq!(echoed(&mut client).await, "x");
}

/// An unknown event of exactly this many bytes.
fn event_of(bytes: usize) -> String {
    let event =
        |padding: usize| json!({"type": "no.such.event", "event_id": "large", "x": "y".repeat(padding)}).to_string();
    event(bytes - event(0).len())
}

#[tokio::test]
async fn the_largest_message_is_taken_and_one_byte_more_is_not() {
    let server = serve(config()).await;
    let most = config().limits.max_message_bytes;
    assert_eq!(most, 16 << 20);
    let mut client = server.connect().await;
    client.raw(Message::text(event_of(most))).await;
    assert_eq!(echoed(&mut client).await, "large");
    // In fragments as well: the message counts, not the frame.
    let text = event_of(most);
    for (n, piece) in text.as_bytes().chunks(1 << 20).enumerate() {
        let data = if n == 0 { Data::Text } else { Data::Continue };
        let last = (n + 1) << 20 >= text.len();
        client.raw(Message::Frame(Frame::message(piece.to_vec(), OpCode::Data(data), last))).await;
    }
    assert_eq!(echoed(&mut client).await, "large");
    drop(client.socket.send(Message::text(event_of(most + 1))).await);
    assert_eq!(client.close_frame().await.map(|frame| frame.code), Some(CloseCode::Size));
    let mut client = server.connect().await;
    for n in 0..17 {
        let data = if n == 0 { Data::Text } else { Data::Continue };
        drop(client.socket.send(Message::Frame(Frame::message(vec![b'x'; 1 << 20], OpCode::Data(data), false))).await);
    }
    assert_eq!(client.close_frame().await.map(|frame| frame.code), Some(CloseCode::Size));
    alive(&server).await;
}

#[tokio::test]
async fn a_goodbye_is_returned() {
    let server = serve(config()).await;
    let mut client = server.connect().await;
    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    client.raw(Message::Close(Some(goodbye))).await;
    assert_eq!(client.close_frame().await.map(|frame| frame.code), Some(CloseCode::Normal));
    assert!(soon("the end", client.socket.next()).await.is_none());
}
