// Swagger UI would load any document that ?url=, ?config= or ?configUrl= names.
history.replaceState(null, "", location.pathname + location.hash);
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
