// The document and its server are relative to this page: the same everywhere, also below a stage.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,  // it would ask a service on the internet
});
