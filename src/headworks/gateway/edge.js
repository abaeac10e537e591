// Which pods get traffic, and how long an upload may take, for nginx (njs 0.9.9). Every pod is asked
// `/ready` on its own timer; what came of it stands in the shared dictionary `headworks_pods`, so that
// all workers see the same:
//
//   <pod address>         1: ready, 0: not; no entry: not yet asked, and so not yet ready
//   silent <pod address>  checks in a row that got no answer
//   turn                  requests handed out so far: pods take turns
//
// Filled in by headworks.gateway.nginx:
const PODS = __PODS__;
const SILENCES = __SILENCES__;
const PANIC = __PANIC__; // gateway.panic
const UPLOAD_MS = __UPLOAD_MS__; // gateway.upload_timeout

// An answer is believed at once; silence only when it lasts, for a single check may get lost.
async function check(pod) {
    const pods = ngx.shared.headworks_pods;
    let reply;
    try {
        reply = await ngx.fetch(`http://${pod}/ready`);
    } catch (error) { // refused, reset or too late
        if (pods.incr(`silent ${pod}`, 1, SILENCES - 1) >= SILENCES) {
            pods.set(pod, 0);
        }
        return;
    }
    pods.set(pod, reply.status === 200 ? 1 : 0);
    pods.set(`silent ${pod}`, 0);
}

// The pods that get traffic, by index: those that are ready; when they are too few, all that answer,
// since the few would only fall over, too.
function wanted() {
    const ready = [];
    const answering = [];
    PODS.forEach((pod, index) => {
        const silent = ngx.shared.headworks_pods.get(`silent ${pod}`);
        if (ngx.shared.headworks_pods.get(pod) === 1) {
            ready.push(index);
        }
        if (silent !== undefined && silent < SILENCES) {
            answering.push(index);
        }
    });
    const pods = ready.length < PANIC * PODS.length ? answering : ready;
    return {ready: ready.length, pods};
}

// The upstream of the pod whose turn it is; empty when no pod can be sent to.
function choose() {
    const pods = wanted().pods;
    if (pods.length === 0) {
        return '';
    }
    const turn = ngx.shared.headworks_pods.incr('turn', 1, 0);
    return `headworks_pod_${pods[turn % pods.length]}`;
}

// The gateway's own health: 200 while it has a pod to send to.
function health(request) {
    const found = wanted();
    request.headersOut['Content-Type'] = 'application/json';
    request.headersOut['Cache-Control'] = 'no-store';
    const body = JSON.stringify({ready: found.ready, pods: PODS.length});
    request.return(found.pods.length > 0 ? 200 : 503, body);
}

// A body must be here in time as a whole: nginx's own timeout is only between two reads. Throwing is
// what closes the connection while the body is still being read.
async function upload(request) {
    const headers = request.headersIn;
    if (headers['Content-Length'] === undefined && headers['Transfer-Encoding'] === undefined) {
        return;
    }
    const late = setTimeout(() => {
        throw new Error('the body took too long');
    }, UPLOAD_MS);
    await request.readRequestArrayBuffer();
    clearTimeout(late);
}

// One check per pod (check0, check1, …), so that a pod that hangs delays no other pod's check.
const handlers = {choose, health, upload};
PODS.forEach((pod, index) => {
    handlers[`check${index}`] = () => check(pod);
});

export default handlers;
