// What each script draws, where, and how it says what came of it.

export const url = process.env.SDXL_URL
export const key = process.env.SDXL_KEY
export const wanted = JSON.parse(process.env.WANTED)
export const tag = `<lora:${wanted.lora}:${wanted.scale}>`
export const size = `${wanted.width}x${wanted.height}`

/** What a picture's URL leads to. */
export async function fetched(place) {
  return Buffer.from(await (await fetch(place)).arrayBuffer())
}

/** The last line of a script. */
export function tell(pictures, facts) {
  const encoded = pictures.map((picture) => Buffer.from(picture).toString('base64'))
  console.log(JSON.stringify({ pictures: encoded, ...facts }))
}

/** The name of the error that `call` ends with; empty where it ends without one. */
export async function failure(call) {
  try {
    await call()
    return ''
  } catch (error) {
    return `${error.status ?? error.statusCode ?? error.response?.status} ${error.message}`
  }
}
