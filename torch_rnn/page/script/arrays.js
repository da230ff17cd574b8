// Arrays as Python packs them, and the product of a matrix and a vector.

/** Returns { shape, data } of an array that Python has packed; data is a Float32Array. */
function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.base64), (character) => character.charCodeAt(0));
  return { shape: packed.shape, data: new Float32Array(bytes.buffer) };
}

/** Adds matrix (rows, columns) times vector (columns) to out (rows). */
function addProduct(out, matrix, vector) {
  for (let i = 0, k = 0; i < out.length; i++) {
    let sum = 0;
    for (let j = 0; j < vector.length; j++, k++) sum += matrix[k] * vector[j];
    out[i] += sum;
  }
}

/** Returns the places of the n largest numbers, the largest first. */
function largest(values, n) {
  const places = [];
  for (let i = 0; i < values.length; i++) {
    if (places.length === n && !(values[i] > values[places[n - 1]])) continue;
    let k = places.length;
    while (k > 0 && values[i] > values[places[k - 1]]) k--;
    places.splice(k, 0, i);
    if (places.length > n) places.pop();
  }
  return places;
}
