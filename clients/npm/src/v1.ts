/** The generated messages and services of polyhead.v1, and the parts of google.rpc that they contain. */

export * from "./gen/google/rpc/error_details_pb.js";
export * from "./gen/google/rpc/status_pb.js";
export * from "./gen/polyhead/v1/admin_service_pb.js";
export * from "./gen/polyhead/v1/inference_service_pb.js";
export * from "./gen/polyhead/v1/item_pb.js";
export * from "./gen/polyhead/v1/model_pb.js";
