#version 330 core
// Attribute numbers are the order in which pyrender.Primitive packs them.
layout(location = 0) in vec3 position;
layout(location = 1) in vec3 normal;
layout(location = 2) in vec2 texture_coordinate;
layout(location = 3) in vec4 colour;

uniform vec3 eye;            // camera centre, in the frame of `position`
uniform mat4 clip_from_eye;  // turns and projects positions relative to the camera centre

out vec3 relative;           // surface point minus camera centre: small numbers near the camera keep their digits
#ifdef NORMALS
out vec3 vertex_normal;
#endif
out vec2 uv;
out vec4 tint;

void main() {
  relative = position - eye;
#ifdef NORMALS
  vertex_normal = normal;
#endif
  uv = texture_coordinate;
  tint = colour;
  gl_Position = clip_from_eye * vec4(relative, 1.0);
}
