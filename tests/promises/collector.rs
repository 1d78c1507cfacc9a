//! A collector for OTLP, by gRPC and by HTTP, that keeps what it is sent.

use std::net::SocketAddr;

use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::metrics::v1::Metric;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    metrics: UnboundedReceiver<ExportMetricsServiceRequest>,
}

#[derive(Clone)]
struct Keep(UnboundedSender<ExportMetricsServiceRequest>);

#[tonic::async_trait]
impl MetricsService for Keep {
    async fn export(&self, request: Request<ExportMetricsServiceRequest>) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.send(request.into_inner()).ok();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    pub(crate) async fn grpc() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (keep, metrics) = unbounded_channel();
        let server = tonic::transport::Server::builder().add_service(MetricsServiceServer::new(Keep(keep)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Collector { address, metrics }
    }

    pub(crate) async fn http() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (keep, metrics) = unbounded_channel();
        let take = move |body: axum::body::Bytes| async move {
            keep.send(ExportMetricsServiceRequest::decode(body).unwrap()).ok();
        };
        let router = axum::Router::new().route("/v1/metrics", axum::routing::post(take));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Collector { address, metrics }
    }

    /// Waits for a metric of that name; with it, the service that sent it.
    pub(crate) async fn metric(&mut self, name: &str) -> (String, Metric) {
        loop {
            let request = self.metrics.recv().await.expect("the collector runs");
            for resource in request.resource_metrics {
                let service = format!("{:?}", resource.resource.expect("a resource").attributes);
                let found = resource
                    .scope_metrics
                    .into_iter()
                    .flat_map(|scope| scope.metrics)
                    .find(|metric| metric.name == name);
                if let Some(found) = found {
                    return (service, found);
                }
            }
        }
    }
}
