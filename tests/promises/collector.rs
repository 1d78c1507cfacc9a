//! A collector for OTLP, by gRPC and by HTTP, that keeps what it is sent.

use std::net::SocketAddr;

use axum::body::Bytes;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{MetricsService, MetricsServiceServer};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::mpsc::{unbounded_channel, UnboundedReceiver, UnboundedSender};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    metrics: UnboundedReceiver<ExportMetricsServiceRequest>,
    traces: UnboundedReceiver<ExportTraceServiceRequest>,
}

#[derive(Clone)]
struct Keep<T>(UnboundedSender<T>);

#[tonic::async_trait]
impl MetricsService for Keep<ExportMetricsServiceRequest> {
    async fn export(&self, request: Request<ExportMetricsServiceRequest>) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.send(request.into_inner()).ok();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl TraceService for Keep<ExportTraceServiceRequest> {
    async fn export(&self, request: Request<ExportTraceServiceRequest>) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.send(request.into_inner()).ok();
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    pub(crate) async fn grpc() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((keep_metrics, metrics), (keep_traces, traces)) = (unbounded_channel(), unbounded_channel());
        let server = tonic::transport::Server::builder()
            .add_service(MetricsServiceServer::new(Keep(keep_metrics)))
            .add_service(TraceServiceServer::new(Keep(keep_traces)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        Collector { address, metrics, traces }
    }

    pub(crate) async fn http() -> Collector {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let ((keep_metrics, metrics), (keep_traces, traces)) = (unbounded_channel(), unbounded_channel());
        let take_metrics = move |body: Bytes| async move { drop(keep_metrics.send(Message::decode(body).unwrap())) };
        let take_traces = move |body: Bytes| async move { drop(keep_traces.send(Message::decode(body).unwrap())) };
        let router = axum::Router::new()
            .route("/v1/metrics", post(take_metrics))
            .route("/v1/traces", post(take_traces));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Collector { address, metrics, traces }
    }

    /// Waits for a metric of that name; with it, the service that sent it.
    pub(crate) async fn metric(&mut self, name: &str) -> (String, Metric) {
        loop {
            let request = self.metrics.recv().await.expect("the collector runs");
            for resource in request.resource_metrics {
                let service = service(&resource.resource);
                let metrics = resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics);
                if let Some(found) = metrics.into_iter().find(|metric| metric.name == name) {
                    return (service, found);
                }
            }
        }
    }

    /// Waits for some spans; with each, the service that sent it.
    pub(crate) async fn spans(&mut self) -> Vec<(String, Span)> {
        let request = self.traces.recv().await.expect("the collector runs");
        let of = |resource: opentelemetry_proto::tonic::trace::v1::ResourceSpans| {
            let service = service(&resource.resource);
            let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.map(|span| (service.clone(), span)).collect::<Vec<_>>()
        };
        request.resource_spans.into_iter().flat_map(of).collect()
    }
}

fn service(resource: &Option<Resource>) -> String {
    let attributes = &resource.as_ref().expect("a resource").attributes;
    let name = attributes.iter().find(|attribute| attribute.key == "service.name").expect("a name");
    match name.value.as_ref().and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(name)) => name.clone(),
        other => panic!("{other:?}"),
    }
}
