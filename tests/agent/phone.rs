//! A WebRTC client: it speaks Opus, and sends and gets events by a data channel.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opus::{Application, Bitrate, Channels, Encoder};
use rtc::media_stream::MediaStreamTrack;
use rtc::peer_connection::configuration::media_engine::MIME_TYPE_OPUS;
use rtc::rtp::{self, header::Header};
use rtc::rtp_transceiver::rtp_sender::{
    RTCRtpCodec, RTCRtpCodecParameters, RTCRtpCodingParameters, RTCRtpEncodingParameters, RtpCodecKind,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use webrtc::data_channel::{DataChannel, DataChannelEvent};
use webrtc::media_stream::track_local::TrackLocal as _;
use webrtc::media_stream::track_local::static_rtp::TrackLocalStaticRTP;
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState,
    RTCPeerConnectionState, RTCSessionDescription, Registry, SettingEngineBuilder, register_default_interceptors,
};

use crate::harness::{Server, soon};

/// An HTTP answer: status, head (header names in lower case), body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|l| l.split_once(": ").filter(|(n, _)| *n == name).map(|(_, v)| v))
    }

    pub fn code(&self) -> String {
        let body: Value = serde_json::from_str(&self.body).unwrap();
        body["error"]["code"].as_str().unwrap().to_owned()
    }
}

/// One HTTP/1.1 request.
pub async fn http(server: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    head.extend(headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")));
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut text = String::new();
    soon("the answer", stream.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let lower = |l: &str| l.split_once(':').map_or(l.to_owned(), |(n, v)| format!("{}:{v}", n.to_ascii_lowercase()));
    let head = head.lines().map(lower).collect::<Vec<_>>().join("\n");
    Answer { status, head, body: body.to_owned() }
}

struct Handler {
    gathered: watch::Sender<bool>,
    state: watch::Sender<RTCPeerConnectionState>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        self.gathered.send_replace(state == RTCIceGatheringState::Complete);
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.state.send_replace(state);
    }
}

pub struct Phone {
    pub connection: Arc<dyn PeerConnection>,
    pub channel: Arc<dyn DataChannel>,
    pub state: watch::Receiver<RTCPeerConnectionState>,
    gathered: watch::Receiver<bool>,
    track: Arc<TrackLocalStaticRTP>,
    payload_type: u8,
    encoder: Encoder,
    sequence: u16,
    timestamp: u32,
    is_open: bool,
}

const SSRC: u32 = 0x5eed;

impl Phone {
    /// A client that gives Opus this payload type, with its microphone open.
    pub async fn new(payload_type: u8) -> Self {
        let rtp_codec = RTCRtpCodec {
            mime_type: MIME_TYPE_OPUS.to_owned(),
            clock_rate: 48_000,
            channels: 2,
            sdp_fmtp_line: "minptime=10;useinbandfec=1".to_owned(),
            rtcp_feedback: vec![],
        };
        let mut media = MediaEngine::default();
        let parameters = RTCRtpCodecParameters { rtp_codec: rtp_codec.clone(), payload_type };
        media.register_codec(parameters, RtpCodecKind::Audio).unwrap();
        let registry = register_default_interceptors(Registry::new(), &mut media).unwrap();
        let (gather, gathered) = watch::channel(false);
        let (tell, state) = watch::channel(RTCPeerConnectionState::New);
        let settings =
            SettingEngineBuilder::new().with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled).build();
        let connection: Arc<dyn PeerConnection> = Arc::new(
            PeerConnectionBuilder::new()
                .with_media_engine(media)
                .with_interceptor_registry(registry)
                .with_setting_engine(settings)
                .with_handler(Arc::new(Handler { gathered: gather, state: tell }))
                .with_udp_addrs(vec!["127.0.0.1:0"])
                .build()
                .await
                .unwrap(),
        );
        let encoding = RTCRtpEncodingParameters {
            rtp_coding_parameters: RTCRtpCodingParameters { ssrc: Some(SSRC), ..Default::default() },
            codec: rtp_codec,
            ..Default::default()
        };
        let track = MediaStreamTrack::new(
            "phone".into(),
            "microphone".into(),
            "microphone".into(),
            RtpCodecKind::Audio,
            vec![encoding],
        );
        let track = Arc::new(TrackLocalStaticRTP::new(track));
        connection.add_track(track.clone()).await.unwrap();
        let channel = connection.create_data_channel("oai-events", None).await.unwrap();
        let mut encoder = Encoder::new(16_000, Channels::Mono, Application::Voip).unwrap();
        encoder.set_bitrate(Bitrate::Bits(32_000)).unwrap();
        encoder.set_inband_fec(true).unwrap();
        // Browsers learn it from our reports; without it, no copies are sent.
        encoder.set_packet_loss_perc(10).unwrap();
        Self {
            connection,
            channel,
            state,
            gathered,
            track,
            payload_type,
            encoder,
            // Soon to wrap.
            sequence: 65_500,
            timestamp: u32::MAX - 48_000,
            is_open: false,
        }
    }

    /// An offer with all candidates.
    pub async fn offer(&mut self) -> String {
        let offer = self.connection.create_offer(None).await.unwrap();
        self.connection.set_local_description(offer).await.unwrap();
        soon("candidates", self.gathered.wait_for(|g| *g)).await.unwrap();
        self.connection.local_description().await.unwrap().sdp
    }

    pub async fn accept(&mut self, answer: &str) {
        let answer = RTCSessionDescription::answer(answer.to_owned()).unwrap();
        self.connection.set_remote_description(answer).await.unwrap();
    }

    pub async fn connected(&mut self) {
        soon("a connection", self.state.wait_for(|s| *s == RTCPeerConnectionState::Connected)).await.unwrap();
    }

    /// Calls a server: where the call lives.
    pub async fn call(&mut self, server: SocketAddr, path: &str) -> String {
        let offer = self.offer().await;
        let answer = http(server, "POST", path, &[("Content-Type", "application/sdp")], offer.as_bytes()).await;
        assert_eq!(answer.status, 201, "{}\n{}", answer.head, answer.body);
        self.accept(&answer.body).await;
        self.connected().await;
        answer.header("location").unwrap().to_owned()
    }

    /// The next event by the data channel, or `None` at its end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            match soon("an event", self.channel.poll()).await {
                Some(DataChannelEvent::OnMessage(message)) => {
                    return Some(serde_json::from_slice(&message.data).unwrap());
                }
                Some(DataChannelEvent::OnClose) | None => return None,
                Some(DataChannelEvent::OnOpen) => self.is_open = true,
                Some(_) => {}
            }
        }
    }

    pub async fn expect(&mut self, kind: &str) -> Value {
        let Some(event) = self.next().await else { panic!("the channel ended; the peer is {}", *self.state.borrow()) };
        assert_eq!(event["type"], kind, "{event:#}");
        event
    }

    pub async fn expect_all(&mut self, kinds: &[&str]) -> Vec<Value> {
        let mut events = Vec::new();
        for kind in kinds {
            events.push(self.expect(kind).await);
        }
        events
    }

    pub async fn send(&mut self, event: Value) {
        self.channel.send_text(&event.to_string()).await.unwrap();
    }

    /// Says something by text and waits for the answer.
    pub async fn say(&mut self, text: &str, server: &mut Server) {
        let content = json!([{"type": "input_text", "text": text}]);
        let item = json!({"type": "message", "role": "user", "content": content});
        self.send(json!({"type": "conversation.item.create", "item": item})).await;
        self.expect_all(&["conversation.item.added", "conversation.item.done"]).await;
        self.send(json!({"type": "response.create"})).await;
        server.asked().await.done().await;
        self.expect_all(&["response.created", "response.done"]).await;
    }

    /// 20 ms of sound at 16 kHz as a packet.
    pub fn encode(&mut self, sound: &[f32]) -> Vec<u8> {
        self.encoder.encode_vec_float(sound, 1500).unwrap()
    }

    /// Sends a payload as the next packet, which lasts so many ticks.
    pub async fn packet(&mut self, payload: Vec<u8>, ticks: u32) {
        let header = Header {
            version: 2,
            payload_type: self.payload_type,
            sequence_number: self.sequence,
            timestamp: self.timestamp,
            ssrc: SSRC,
            ..Default::default()
        };
        self.sequence = self.sequence.wrapping_add(1);
        self.timestamp = self.timestamp.wrapping_add(ticks);
        self.track.write_rtp(rtp::Packet { header, payload: payload.into() }).await.unwrap();
    }

    /// Sends sound at 16 kHz, ten times faster than it was spoken.
    pub async fn speak(&mut self, sound: &[f32]) {
        for frame in sound.chunks_exact(320) {
            let packet = self.encode(frame);
            self.packet(packet, 960).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    pub async fn close(&mut self) {
        self.connection.close().await.unwrap();
    }
}

impl Drop for Phone {
    fn drop(&mut self) {
        let connection = self.connection.clone();
        tokio::spawn(async move { connection.close().await });
    }
}
