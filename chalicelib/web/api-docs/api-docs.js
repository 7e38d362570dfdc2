// The URL is relative, so that the page also works below a stage's path.
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,  // the default sends the document to a public service
});
