//! One peer connection: it hears Opus and carries data channels, and is closed whatever happens.

use std::sync::Arc;
use std::time::Duration;

use rtc::peer_connection::configuration::media_engine::MIME_TYPE_OPUS;
use rtc::peer_connection::configuration::setting_engine::SctpMaxMessageSize;
use rtc::peer_connection::transport::RTCDtlsRole;
use rtc::rtp_transceiver::rtp_sender::{RTCRtpCodec, RTCRtpCodecParameters, RtpCodecKind};
use tokio::sync::{mpsc, watch};
use webrtc::data_channel::{DataChannel, RTCDataChannelInit};
use webrtc::error::Error;
use webrtc::media_stream::track_remote::TrackRemote;
use webrtc::peer_connection::{
    MediaEngine, PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceGatheringState,
    RTCPeerConnectionState, RTCSessionDescription, Registry, SettingEngineBuilder, configure_rtcp_reports,
};

use super::port::{Lease, Port};
use crate::protocol::sdp::{self, Candidate, Offer};

/// Tracks and channels that may wait to be looked at; what a peer opens beyond is not.
const OPENED: usize = 16;
/// Bytes of text that the peer has not acknowledged; beyond, the next event waits on the board.
const UNACKNOWLEDGED: usize = 1 << 20;
/// The longest message that a client may send on a data channel, as browsers have it.
const MOST_MESSAGE: u32 = 256 << 10;
/// Nothing but our own socket is gathered.
const GATHERING: Duration = Duration::from_secs(5);

/// What a peer has opened.
pub(super) enum Opened {
    /// A stream of sound.
    Track(Arc<dyn TrackRemote>),
    /// A data channel.
    Channel(Arc<dyn DataChannel>),
}

impl Opened {
    /// Nobody listens to it: what it carries is dropped, which the crate would keep, or write into the log.
    pub(super) fn ignore(self) {
        tokio::spawn(async move {
            match self {
                Self::Track(track) => while track.poll().await.is_some() {},
                Self::Channel(channel) => while channel.poll().await.is_some() {},
            }
        });
    }
}

/// What a connection tells of itself.
pub(super) struct Events {
    pub(super) opened: mpsc::Receiver<Opened>,
    pub(super) state: watch::Receiver<RTCPeerConnectionState>,
}

/// One connection. Dropping it closes it.
pub(super) struct Peer {
    connection: Arc<dyn PeerConnection>,
    gathered: watch::Receiver<bool>,
    lease: Lease,
    candidates: Vec<Candidate>,
}

impl Peer {
    /// A connection on a line of this port, for an offer like this one, which has failed when its peer has not been heard for `gone`.
    pub(super) async fn new(port: &Port, offer: &Offer, gone: Duration) -> Result<(Self, Events), Error> {
        let (lease, runtime) = port.line();
        let (open, opened) = mpsc::channel(OPENED);
        let (tell, state) = watch::channel(RTCPeerConnectionState::New);
        let (gather, gathered) = watch::channel(false);
        let mut media = MediaEngine::default();
        media.register_codec(opus(), RtpCodecKind::Audio)?;
        // Reports alone. Feedback for each packet and requests to repeat one are for video: Opus brings its own copies, and they would cost more than hearing.
        let interceptors = configure_rtcp_reports(Registry::new());
        // As a server of the handshake we are connected at once: a client's first message may be lost, ours comes when the path is known.
        let role = if offer.is_passive { RTCDtlsRole::Client } else { RTCDtlsRole::Server };
        let settings = SettingEngineBuilder::new()
            .with_answering_dtls_role(role)
            .with_multicast_dns_mode(rtc::ice::mdns::MulticastDnsMode::Disabled)
            .with_ice_timeouts(Some(gone / 6), Some(gone - gone / 6), Some((gone / 15).min(Duration::from_secs(2))))
            .with_sctp_max_message_size(SctpMaxMessageSize::Bounded(MOST_MESSAGE))
            .build();
        let connection = PeerConnectionBuilder::new()
            .with_media_engine(media)
            .with_interceptor_registry(interceptors)
            .with_setting_engine(settings)
            .with_runtime(runtime)
            .with_handler(Arc::new(Handler { open, tell, gather }))
            .with_udp_addrs(vec!["127.0.0.1:0"])
            .with_data_channel_send_buffer_limit(UNACKNOWLEDGED)
            .build()
            .await?;
        let candidates = port.candidates().to_vec();
        let peer = Self { connection: Arc::new(connection), gathered, lease, candidates };
        Ok((peer, Events { opened, state }))
    }

    /// Answers an offer: the first one, or one that restarts ICE.
    pub(super) async fn answer(&self, offer: &Offer) -> Result<String, Error> {
        let answered = self.agree(offer).await;
        if answered.is_err() {
            // Half an agreement would refuse every later offer.
            let back = self.connection.set_remote_description(RTCSessionDescription::rollback(None)?).await;
            let _ = back.inspect_err(|error| tracing::debug!(%error, "an offer is not taken back"));
        }
        answered
    }

    async fn agree(&self, offer: &Offer) -> Result<String, Error> {
        let connection = &self.connection;
        connection.set_remote_description(RTCSessionDescription::offer(offer.text().into())?).await?;
        let answer = connection.create_answer(None).await?;
        let names = sdp::credentials(&answer.sdp).ok_or(Error::ErrSessionDescriptionMissingIceUfrag)?;
        self.lease.name(&names.ufrag, &names.password);
        connection.set_local_description(answer).await?;
        let mut gathered = self.gathered.clone();
        let complete = tokio::time::timeout(GATHERING, gathered.wait_for(|gathered| *gathered)).await;
        if !complete.is_ok_and(|told| told.is_ok()) {
            return Err(Error::Other("the connection has no socket".into()));
        }
        let answer = connection.local_description().await.map(|answer| answer.sdp).unwrap_or_default();
        Ok(sdp::answer(&answer, &self.candidates))
    }

    /// A data channel that loses what is lost.
    pub(super) async fn open_unreliable(&self, label: &str) -> Result<Arc<dyn DataChannel>, Error> {
        let init = RTCDataChannelInit { ordered: false, max_retransmits: Some(0), ..Default::default() };
        self.connection.create_data_channel(label, Some(init)).await
    }

    /// Closes the connection; without this, its tasks would live on.
    pub(super) async fn close(&self) {
        if let Err(error) = self.connection.close().await {
            tracing::debug!(%error, "closing a peer connection");
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let connection = self.connection.clone();
        // Closing twice does no harm.
        tokio::spawn(async move { connection.close().await });
    }
}

/// Opus alone: all else that is offered is rejected.
fn opus() -> RTCRtpCodecParameters {
    let rtp_codec = RTCRtpCodec {
        mime_type: MIME_TYPE_OPUS.to_owned(),
        clock_rate: 48_000,
        channels: 2,
        sdp_fmtp_line: "minptime=10;useinbandfec=1".to_owned(),
        rtcp_feedback: vec![],
    };
    RTCRtpCodecParameters { rtp_codec, payload_type: 111 }
}

/// Hands on what the connection tells. It is called on the connection's own task, so it never waits.
struct Handler {
    open: mpsc::Sender<Opened>,
    tell: watch::Sender<RTCPeerConnectionState>,
    gather: watch::Sender<bool>,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        self.gather.send_replace(state == RTCIceGatheringState::Complete);
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        self.tell.send_replace(state);
    }

    async fn on_data_channel(&self, channel: Arc<dyn DataChannel>) {
        let _ = self.open.try_send(Opened::Channel(channel)).map_err(|full| full.into_inner().ignore());
    }

    async fn on_track(&self, track: Arc<dyn TrackRemote>) {
        let _ = self.open.try_send(Opened::Track(track)).map_err(|full| full.into_inner().ignore());
    }
}
